"""Population based training (Jaderberg et al. 2017) by rungs: the worst go on from the best, with other settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from genmodels.search_space import Dimension, Space, Values

QUARTER = 0.25  # of the population is the worst, and as many are the best
RESAMPLED = 0.25  # the chance that a setting is drawn anew
FACTORS = (0.8, 1.2)  # otherwise


class RandomDraw:
    """Draws values from a generator, where `Dimension.draw` expects an Optuna trial."""

    def __init__(self, random: Random):
        self._random = random

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number in [low, high], uniform or with a uniform logarithm."""
        if log:
            return math.exp(self._random.uniform(math.log(low), math.log(high)))
        return self._random.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return self._random.randint(low, high)

    def suggest_categorical(self, name: str, choices: Sequence[int]) -> int:
        """One of the choices."""
        return self._random.choice(choices)


def parent(scores: dict[str, float], name: str, direction: str, random: Random) -> str | None:
    """One of the best trials at a rung, if `name` is among the worst there; None while fewer than four are there."""
    num = int(len(scores) * QUARTER)
    order = sorted(scores, key=lambda key: scores[key], reverse=direction == "max")
    return random.choice(order[:num]) if num and name in order[-num:] else None


def perturbed(space: Space, values: Values, random: Random) -> Values:
    """Every value drawn anew, or a little larger or smaller; a choice: its neighbour."""
    return {name: _perturbed(space[name], name, value, random) for name, value in values.items()}


def _perturbed(dimension: Dimension, name: str, value: object, random: Random) -> object:
    if random.random() < RESAMPLED:
        return dimension.draw(name, RandomDraw(random))
    if dimension.kind == "choice":
        at = dimension.values.index(value) + random.choice((-1, 1))
        return dimension.values[min(max(at, 0), len(dimension.values) - 1)]
    assert isinstance(value, int | float)
    if dimension.kind == "int":
        return dimension.clipped(value + random.choice((-1, 1)))
    return dimension.clipped(value * random.choice(FACTORS))
