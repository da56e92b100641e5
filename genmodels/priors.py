"""Prior distributions over codes; a new one is one function and one entry of PRIORS.

A prior takes draws of N(0, I), [N, Z], and places, draws of U[0, 1), [N], to latents [N, Z]: so one function serves
every source of randomness, and walks between two draws stay within the prior. The place says where in the prior: the
mode, the point along the roll. A class has its own share of the places (Makhzani et al. 2016, section 2.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

PriorName = Literal["gaussian", "uniform", "mixture", "swiss_roll"]


def gaussian(normal: Tensor, place: Tensor) -> Tensor:
    """N(0, I)."""
    return normal


def uniform(normal: Tensor, place: Tensor) -> Tensor:
    """U(-1, 1)^Z."""
    return torch.erf(normal / math.sqrt(2))  # 2 Phi(x) - 1


def mixture(normal: Tensor, place: Tensor, num_modes: int = 10) -> Tensor:
    """Long Gaussians around the origin, as petals, in the first two dimensions; N(0, 1) in the others.

    Makhzani et al. 2016, figure 4a; radius 1.4, standard deviations 0.5 outwards and 0.1 across.
    """
    angle = (place * num_modes).floor() * (2 * math.pi / num_modes)
    along, across = 1.4 + 0.5 * normal[:, 0], 0.1 * normal[:, 1]
    x, y = along * angle.cos() - across * angle.sin(), along * angle.sin() + across * angle.cos()
    return torch.cat([torch.stack([x, y], 1), normal[:, 2:]], 1)


def swiss_roll(normal: Tensor, place: Tensor) -> Tensor:
    """Two turns of a spiral, even along its length, in the first two dimensions; N(0, 1) in the others.

    Makhzani et al. 2016, figure 4b; the radius grows to 2, the standard deviation about the spiral is 0.05.
    """
    turn = place.sqrt()  # the length grows with the square of the angle
    angle = 4 * math.pi * turn
    spiral = 2 * turn[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return torch.cat([spiral + 0.05 * normal[:, :2], normal[:, 2:]], 1)


PRIORS: dict[PriorName, Callable[[Tensor, Tensor], Tensor]] = {
    "gaussian": gaussian,
    "uniform": uniform,
    "mixture": mixture,
    "swiss_roll": swiss_roll,
}
assert tuple(PRIORS) == get_args(PriorName)
IN_PLACES: tuple[PriorName, ...] = ("mixture", "swiss_roll")  # the others look the same wherever their place is


def place_of_class(place: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Places [N] in [0, 1) -> places within the share of each one's class, labels int64 [N]."""
    return (labels + place) / num_classes
