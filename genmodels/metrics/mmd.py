"""Maximum mean discrepancy between two sets of points (Gretton et al. 2012)."""

from __future__ import annotations

import torch
from torch import Tensor

SCALES = (0.25, 0.5, 1.0, 2.0)  # kernel widths, in units of the median distance


def squared_mmd(real: Tensor, fake: Tensor) -> float:
    """Unbiased estimate of MMD^2 of points [N, Z] and [M, Z], so slightly negative where the two agree.

    The kernel is the mean of Gaussians as wide as a quarter to twice the median distance between the reals;
    Gretton et al. 2012, equation 3.
    """
    real, fake = real.double(), fake.double()
    median = torch.pdist(real).median()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = torch.cdist(a, b).square() / (2 * median**2)
        return torch.stack([torch.exp(-squares / scale**2) for scale in SCALES]).mean(0)

    def within(points: Tensor) -> Tensor:
        num = len(points)
        return (kernel(points, points).sum() - num) / (num * (num - 1))  # without the diagonal, which is 1

    return float(within(real) + within(fake) - 2 * kernel(real, fake).mean())
