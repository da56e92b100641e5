"""The ring of Gaussians: points of the plane whose density is known, the usual test of a GAN's mode coverage.

Points [N, 2] in [-1, 1] coordinates; the mixture has equal weights (Metz et al. 2017, section 3.1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_MODES = 8
RADIUS = 0.7  # of the circle on which the modes lie
SIGMA = 0.05  # standard deviation of each mode


def ring_centres() -> Tensor:
    """Mode centres [8, 2], anticlockwise from (RADIUS, 0)."""
    angles = torch.arange(NUM_MODES) * (2 * math.pi / NUM_MODES)
    return RADIUS * torch.stack([angles.cos(), angles.sin()], 1)


def ring_points(num: int, generator: torch.Generator) -> Tensor:
    """Draws [num, 2] from the mixture; 1 in 10^8 lies outside [-1, 1]."""
    modes = torch.randint(NUM_MODES, (num,), generator=generator)
    return ring_centres()[modes] + SIGMA * torch.randn(num, 2, generator=generator)


def ring_log_density(points: Tensor) -> Tensor:
    """Log p_data(x) in nats, [N], of points [N, 2]."""
    squares = (points[:, None] - ring_centres().to(points)).square().sum(2)  # [N, 8]
    log_normal = -0.5 * squares / SIGMA**2 - math.log(2 * math.pi * SIGMA**2)
    return torch.logsumexp(log_normal, 1) - math.log(NUM_MODES)
