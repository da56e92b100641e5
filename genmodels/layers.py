"""Layers that several models share. Maps are [B, C, H, W]."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.convolution import convolve

HE_GAIN = math.sqrt(2)  # keeps the variance of activations through rectifiers (He et al. 2015)


class EqualizedConv2d(nn.Module):
    """Convolution with an equalised learning rate; kernel_size is odd.

    The weight is drawn from N(0, 1) and scaled by gain / sqrt(fan_in) in every pass, so that Adam's steps are
    as large relative to it in every layer (Karras et al. 2018, section 4.1). resample "up" doubles the image size
    first (nearest neighbours), "down" averages 2x2 pixels of the result; both are fused into one convolution of
    stride 2, exactly, as in the official code.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        gain: float = HE_GAIN,
        resample: Literal["up", "down"] | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = gain / math.sqrt(in_channels * kernel_size**2)
        self.padding, self.resample = kernel_size // 2, resample

    def forward(self, maps: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H', W'], where H' is H, 2 H or H / 2."""
        if self.resample is None:
            return convolve(maps, self.weight * self.scale, self.bias, 1, self.padding)
        if self.resample == "up":
            weight = spread(self.weight * self.scale).flip(2, 3).transpose(0, 1)
            return convolve(maps, weight, self.bias, 2, self.padding, up=True)
        weight = spread(self.weight * (self.scale / 4))
        return convolve(maps, weight, self.bias, 2, self.padding)


def spread(weight: Tensor) -> Tensor:
    """Kernels [O, I, K, K] convolved with the 2x2 box of ones: [O, I, K + 1, K + 1]."""
    padded = F.pad(weight, [1, 1, 1, 1])
    rows = padded[:, :, 1:] + padded[:, :, :-1]
    return rows[:, :, :, 1:] + rows[:, :, :, :-1]


class EqualizedLinear(nn.Module):
    """Dense layer with an equalised learning rate, as `EqualizedConv2d`."""

    def __init__(self, in_features: int, out_features: int, gain: float = HE_GAIN):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = gain / math.sqrt(in_features)

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_features] -> [B, out_features]."""
        return F.linear(features, self.weight * self.scale, self.bias)


class PixelNorm(nn.Module):
    """Scales each pixel's feature vector, dimension 1, to a mean square of 1 (Karras et al. 2018, section 4.2)."""

    def __init__(self, eps: float = 1e-8):
        super().__init__()
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape."""
        # A product, as autocast on CUDA would take a square, and with it whole maps, to fp32.
        mean_square = (features * features).mean(dim=1, keepdim=True).float()
        return features * torch.rsqrt(mean_square + self.eps).to(features.dtype)


def minibatch_stddev(maps: Tensor, group_size: int, eps: float = 1e-8) -> Tensor:
    """Appends one map, how much images differ within their group: [B, C, H, W] -> [B, C + 1, H, W].

    It is the standard deviation over the group (biased, as in the official code), averaged over features and pixels
    to one number a group (Karras et al. 2018, section 3). A batch that group_size does not divide falls
    back to its largest divisor below. The groups are interleaved: i, i + B / group, i + 2 B / group ...
    """
    batch, _, height, width = maps.shape
    group = largest_divisor(batch, group_size)
    grouped = maps.float().unflatten(0, (group, batch // group))  # fp32: eps vanishes in fp16
    stddev = (grouped.var(dim=0, correction=0) + eps).sqrt().mean(dim=(1, 2, 3))  # [B / group]
    extra = stddev.repeat(group).view(batch, 1, 1, 1).expand(-1, 1, height, width)
    return torch.cat([maps, extra.to(maps.dtype)], dim=1)


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is not above `at_most`; both at least 1."""
    return next(divisor for divisor in range(min(number, at_most), 0, -1) if number % divisor == 0)


def upsample2x(maps: Tensor) -> Tensor:
    """Doubles the image size by nearest neighbours."""
    return F.interpolate(maps, scale_factor=2.0, mode="nearest").to(maps.dtype)  # autocast on CUDA makes fp32 of it


def downsample2x(maps: Tensor) -> Tensor:
    """Halves the image size by averaging 2x2 pixels."""
    return F.avg_pool2d(maps, 2)
