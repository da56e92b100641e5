"""Our Adam against torch's own."""

from __future__ import annotations

import pytest
import torch

from genmodels.adam import Adam
from genmodels.model import OptimizerConfig

CONFIG = OptimizerConfig(lr=0.01, betas=(0.3, 0.9), eps=1e-6)


def make_parameters(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(7, generator=generator)
    image = torch.randn(3, 4, 5, 5, generator=generator).contiguous(memory_format=torch.channels_last)
    return [flat.requires_grad_(), image.requires_grad_(), torch.ones(2).requires_grad_()]


def set_gradients(parameters: list[torch.Tensor], step: int) -> None:
    """The last parameter has none before the third step."""
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters[: 3 if step > 1 else 2]:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_it_is_torchs_adam_bit_for_bit():
    ours, theirs = make_parameters(), make_parameters()
    adam = Adam(ours, CONFIG)
    reference = torch.optim.Adam(theirs, CONFIG.lr, CONFIG.betas, CONFIG.eps, fused=True)
    for step in range(5):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        adam.lr = reference.param_groups[0]["lr"] = 0.01 / (step + 1)
        adam.step()
        reference.step()
    for own, other in zip(ours, theirs, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_a_skipped_update_has_not_been(bad):
    ours, theirs = make_parameters(), make_parameters()
    adam, reference = Adam(ours, CONFIG), Adam(theirs, CONFIG)
    for step in range(5):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        adam.skip = torch.tensor(float(step == bad))
        adam.step()
        if step != bad:
            reference.step()
    assert all(torch.equal(own, other) for own, other in zip(ours, theirs, strict=True))
    for number, moments in reference.state_dict().items():
        assert all(torch.equal(value, adam.state_dict()[number][name]) for name, value in moments.items())


def test_it_goes_on_from_its_state_and_shares_nothing_with_it():
    parameters = make_parameters()
    adam = Adam(parameters, CONFIG)
    set_gradients(parameters, 0)
    adam.step()
    copies = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    resumed = Adam(copies, CONFIG)
    resumed.load_state_dict(adam.state_dict())
    for step in range(1, 4):
        for each, optimizer in ((parameters, adam), (copies, resumed)):
            set_gradients(each, step)
            optimizer.step()
    assert all(torch.equal(own, other) for own, other in zip(parameters, copies, strict=True))


def test_it_goes_on_from_torchs_own_state():
    parameters = make_parameters()
    reference = torch.optim.Adam(parameters, CONFIG.lr, CONFIG.betas, CONFIG.eps, fused=True)
    set_gradients(parameters, 0)
    reference.step()
    adam = Adam(parameters, CONFIG)
    adam.load_state_dict(reference.state_dict())
    assert all(
        torch.equal(adam.moments[i][name], value)
        for i in (0, 1)
        for name, value in reference.state[parameters[i]].items()
    )
