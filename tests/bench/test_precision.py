"""ProGAN's gradients in bf16, penalty included, point where those of fp32 do."""

from dataclasses import replace

import pytest
import torch

from bench.cases import CASES, Case

SMALL = [replace(case, batch_size=4) for case in CASES if case.model == "progan" and case.image_size <= 64]


def gradients(case: Case, precision: str) -> dict[str, list[torch.Tensor]]:
    """By phase, all gradients of the first step; no update is made."""
    trainer, found = case.trainer(precision), {}

    def note(name: str) -> None:
        found[name] = [parameter.grad.clone() for parameter in trainer.parameters[name] if parameter.grad is not None]

    for phase in trainer.model.phases:
        trainer.optimizers[phase.name].step = lambda name=phase.name: note(name)
    batch = case.batch(0)
    trainer.train_step(trainer._to_device({key: batch[key] for key in trainer.model.batch_keys}))
    return found


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_gradients_of_bf16_point_where_those_of_fp32_do(case):
    full, half = gradients(case, "fp32"), gradients(case, "bf16")
    assert full.keys() == half.keys() == {"critic", "generator"}
    for name, phase in full.items():
        a, b = (torch.cat([gradient.flatten() for gradient in each]).double() for each in (phase, half[name]))
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=0).item()
        assert cosine >= 0.99, f"{name}: {cosine:.4f}"
