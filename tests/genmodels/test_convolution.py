"""Convolutions that are differentiated twice, against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from genmodels.convolution import convolve, no_weight_gradients


def own(maps, weight, bias, stride, padding, up):
    return (F.conv_transpose2d if up else F.conv2d)(maps, weight, bias, stride=stride, padding=padding)


@pytest.mark.parametrize(
    "kernel, stride, padding, up", [(3, 1, 1, False), (1, 1, 0, False), (4, 2, 1, False), (4, 2, 1, True)]
)
def test_both_derivatives_are_torchs(kernel, stride, padding, up):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    maps, bias = draw(2, 3, 8, 8), draw(5)
    weight = draw(*((3, 5) if up else (5, 3)), kernel, kernel)

    def penalty_gradients(operation):
        score = operation(maps, weight, bias, stride, padding, up).sin().sum()
        (gradient,) = torch.autograd.grad(score, maps, create_graph=True)
        total = score + gradient.square().sum()
        return score, gradient, *torch.autograd.grad(total, [maps, weight, bias])

    for mine, theirs in zip(penalty_gradients(convolve), penalty_gradients(own), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_weights_are_left_out_where_a_penalty_does_not_look():
    maps, weight = torch.ones(1, 1, 4, 4, requires_grad=True), torch.ones(1, 1, 3, 3, requires_grad=True)
    with no_weight_gradients():
        convolve(maps, weight, None, 1, 1).sum().backward()
    assert weight.grad is None and maps.grad is not None
    convolve(maps, weight, None, 1, 1).sum().backward()
    assert weight.grad is not None


def test_autocast_reaches_them():
    maps, weight = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(maps, weight, torch.zeros(1), 1, 1).dtype == torch.bfloat16
