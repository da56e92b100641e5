"""Convolutions whose gradients can be differentiated again at the speed of the first.

Autograd takes the second derivative of a convolution's weight by another convolution, whose kernel is as large as the
image; here it is the same routine as the first derivative's, as the gradient penalties need it (Karras et al. 2020,
conv2d_gradfix in StyleGAN2-ADA). Exact; a step of ProGAN at 64 px takes 1.10 times as long without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_weight_gradients = True


@contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Within, backward passes leave out the gradients of `convolve`'s weights, which a penalty does not look at.

    Autograd does not tell a Function which of its gradients a call of `torch.autograd.grad` asks for.
    """
    global _weight_gradients
    _weight_gradients = False
    try:
        yield
    finally:
        _weight_gradients = True


def convolve(maps: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, up: bool = False) -> Tensor:
    """As F.conv2d, or with `up` as F.conv_transpose2d, of maps [B, C, H, W] whose sizes divide evenly by the stride."""
    device = maps.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        maps, weight, bias = maps.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype)
    return _Convolution.apply(maps, weight, bias, (stride, padding, up))


Geometry = tuple[int, int, bool]  # stride, padding, transposed


def _arguments(geometry: Geometry) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
    """The geometry as ATen's convolutions take it."""
    stride, padding, transposed = geometry
    return [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], 1


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.geometry = geometry
        return torch.ops.aten.convolution(maps, weight, bias, *_arguments(geometry))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (maps, weight), (stride, padding, transposed) = ctx.saved_tensors, ctx.geometry
        of_maps = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_maps = _Convolution.apply(gradient, weight, None, (stride, padding, not transposed))
        if ctx.needs_input_grad[1] and _weight_gradients:
            of_weight = _WeightGradient.apply(maps, gradient, weight, ctx.geometry)
        if ctx.needs_input_grad[2] and _weight_gradients:
            of_bias = gradient.sum((0, 2, 3))
        return of_maps, of_weight, of_bias, None


class _WeightGradient(Function):
    """Linear in the maps and in the gradient; nothing here needs a third derivative."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, gradient: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        mask = [False, True, False]
        return torch.ops.aten.convolution_backward(gradient, maps, weight, None, *_arguments(geometry), mask)[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("the gradient of a convolution's weight is not differentiated again")
