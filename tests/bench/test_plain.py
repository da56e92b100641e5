"""The plain scripts that speed is measured against do the mathematics of our models: equal losses, equal gradients."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from bench.cases import CASES, Case
from genmodels.model import Noise
from genmodels.trainer import to_float

SMALL = [replace(case, batch_size=min(case.batch_size, 4)) for case in CASES]
SMALL = [case for case in SMALL if case.name not in ("progan 64 px", "progan 128 px")]  # 32 px has every layer


class GlobalNoise(Noise):
    """Draws from torch's own generator, as scripts do."""

    def __init__(self, *_):
        pass

    def normal(self, num, *shape):
        return torch.randn(num, *shape)

    def uniform(self, num, *shape):
        return torch.rand(num, *shape)

    def integers(self, high, num, *shape):
        return torch.randint(high, (num, *shape))


def record(optimizers, parameters) -> list[list[torch.Tensor]]:
    """The gradients of every update to come, in a list that grows; the updates themselves are left out."""
    updates = []

    def note(used: list[torch.Tensor]) -> None:
        updates.append([parameter.grad.clone() for parameter in used if parameter.grad is not None])

    for optimizer in optimizers:
        optimizer.step = partial(note, parameters(optimizer))
    return updates


@pytest.fixture
def double(monkeypatch):
    """In fp32 a sum near zero, rounded otherwise, takes a ReLU's other side, and gradients differ by half a percent."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def to_double(batch):
    floats = {key: to_float(value) if value.dtype == torch.uint8 else value for key, value in batch.items()}
    return {key: value.double() if value.is_floating_point() else value for key, value in floats.items()}


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_plain_script_has_our_losses_and_gradients(case: Case, monkeypatch, double):
    monkeypatch.setattr("genmodels.trainer.Noise", GlobalNoise)
    trainer, batch = case.trainer(), to_double(case.batch(0))
    script = case.script(trainer.model)
    losses, step = [], trainer.model.training_step

    def noted_step(*arguments):
        output = step(*arguments)
        losses.append(sum(loss.item() for loss in output.losses.values()))
        return output

    trainer.model.training_step = noted_step
    ours = record(trainer.optimizers.values(), lambda adam: adam.parameters)
    plain = record(script.optimizers, lambda adam: [p for group in adam.param_groups for p in group["params"]])
    torch.manual_seed(1)
    trainer.train_step({key: batch[key] for key in trainer.model.batch_keys})
    torch.manual_seed(1)
    plain_losses = script.step(batch)

    assert losses == pytest.approx([loss.item() for loss in plain_losses], rel=1e-8, abs=1e-9)
    assert len(ours) == len(plain) == len(losses)
    for mine, theirs in zip(ours, plain, strict=True):
        size = torch.stack([gradient.norm() for gradient in theirs]).norm()
        for own, other in zip(mine, theirs, strict=True):
            assert (own - other).norm() < 1e-7 * other.norm() + 1e-9 * size
