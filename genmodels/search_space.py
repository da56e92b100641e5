"""What a sweep may change of a model: `sweep.MODEL` in params.yaml, a range or choices by setting.

sweep:
  dcgan:
    lr: {loguniform: [0.00005, 0.002]}
    penalty: {choice: [none, r1]}
    penalty_weight: {loguniform: [0.1, 20], when: {penalty: [r1]}}
    discriminator_steps: {int: [1, 3]}
    train.batch_size: {choice: [16, 32, 64]}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from genmodels.model import Strict

KINDS = ("uniform", "loguniform", "int", "choice")
FIXED = ("dataset", "train.num_images", "train.image_size", "train.domain", "train.seed")  # what scores depend on
Values = dict[str, Any]  # by setting, as `train.batch_size`


class Draw(Protocol):
    """Where values come from; an Optuna trial is one."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number in [low, high], uniform or with a uniform logarithm."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """An integer in [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[int]) -> int:
        """One of the choices."""


class Dimension(Strict):
    """One setting: KIND: [low, high], or choice: [...]; `when`: only where other settings have one of some values."""

    kind: Literal["uniform", "loguniform", "int", "choice"]
    values: tuple[Any, ...]  # low and high, or the choices
    when: dict[str, tuple[Any, ...]] = {}

    @model_validator(mode="before")
    @classmethod
    def _by_kind(cls, raw: Any) -> Any:
        given = [kind for kind in KINDS if isinstance(raw, Mapping) and kind in raw]
        if len(given) != 1 or set(raw) - {*KINDS, "when"}:
            raise _wrong(f"expected one of {', '.join(KINDS)} (and when), as in {{loguniform: [0.0001, 0.01]}}")
        values, when = raw[given[0]], raw.get("when", {})
        if not isinstance(values, list | tuple) or len(values) < (1 if given[0] == "choice" else 2):
            raise _wrong(f"{given[0]} expects a list: {'its choices' if given[0] == 'choice' else '[low, high]'}")
        if not isinstance(when, Mapping) or not all(isinstance(choices, list | tuple) for choices in when.values()):
            raise _wrong("when expects lists of values by setting, as in when: {penalty: [r1]}")
        return {"kind": given[0], "values": values if given[0] == "choice" else _bounds(given[0], values), "when": when}

    @property
    def is_log(self) -> bool:
        """Whether the logarithm is uniform."""
        return self.kind == "loguniform"

    def applies(self, values: Values) -> bool:
        """Whether the setting is searched where the others have these values."""
        return all(values.get(name) in choices for name, choices in self.when.items())

    def draw(self, name: str, source: Draw) -> Any:
        """One value."""
        if self.kind == "choice":  # by its place: a choice may be a list
            return self.values[source.suggest_categorical(name, tuple(range(len(self.values))))]
        low, high = self.values
        if self.kind == "int":
            return source.suggest_int(name, low, high)
        return self.clipped(source.suggest_float(name, low, high, log=self.is_log))

    def drawn(self, value: Any) -> Any:
        """What `draw` must have been suggested for a value; None for one outside."""
        if self.kind == "choice":
            return self.values.index(value) if value in self.values else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if is_number and self.values[0] <= value <= self.values[1] else None

    def points(self, num: int) -> list[Any]:
        """All choices; of a range at most `num` evenly spaced values, both ends among them."""
        if self.kind == "choice":
            return list(self.values)
        low, high = (math.log(value) for value in self.values) if self.is_log else self.values
        spaced = [low + (high - low) * i / (num - 1) for i in range(num)]
        if self.is_log:
            return [self.values[0], *(math.exp(value) for value in spaced[1:-1]), self.values[1]]
        return list(dict.fromkeys(round(value) for value in spaced)) if self.kind == "int" else spaced

    def clipped(self, value: Any) -> Any:
        """A value brought into the range, of four digits, which people can copy; a choice as it is."""
        if self.kind == "choice":
            return value
        rounded = round(value) if self.kind == "int" else float(f"{value:.4g}")
        return min(max(rounded, self.values[0]), self.values[1])


Space = dict[str, Dimension]


def draw(space: Space, source: Draw) -> Values:
    """A value for every setting whose `when` holds."""
    values: Values = {}
    for name, dimension in space.items():
        if dimension.applies(values):
            values[name] = dimension.draw(name, source)
    return values


def grid(space: Space, num: int) -> list[Values]:
    """Every combination of `Dimension.points`; each once, settings that do not apply left out."""
    found: list[Values] = []
    for chosen in itertools.product(*(dimension.points(num) for dimension in space.values())):
        values: Values = {}
        for (name, dimension), value in zip(space.items(), chosen, strict=True):
            if dimension.applies(values):
                values[name] = value
        if values not in found:
            found.append(values)
    return found


def bounds(space: Space) -> Iterator[tuple[str, Values]]:
    """Each end of each range and each choice alone, with the values that its `when` asks for; (setting, values)."""
    for name, dimension in space.items():
        needed = {other: choices[0] for other, choices in dimension.when.items()}
        for value in dimension.values:
            yield name, {**needed, name: value}


def check(space: Space, where: str) -> None:
    """ValueError for a setting that no sweep may change, or a `when` of what is not drawn before."""
    for i, (name, dimension) in enumerate(space.items()):
        if name in FIXED:
            raise ValueError(f"{where}.{name}: scores that differ in it do not compare; leave it to models.MODEL")
        if inside := [other for other in space if name.startswith(f"{other}.")]:
            raise ValueError(f"{where}.{name}: it lies inside {inside[0]!r}, which is searched itself")
        for other, choices in dimension.when.items():
            earlier = list(space)[:i]
            if other not in earlier:
                known = ", ".join(earlier) or "none"
                raise ValueError(f"{where}.{name}.when: {other!r} is not searched before it; choices: {known}")
            if not choices or any(space[other].drawn(choice) is None for choice in choices):
                raise ValueError(f"{where}.{name}.when.{other}: {list(choices)} is outside of what is searched")


def nested(values: Values) -> dict[str, Any]:
    """{'train.batch_size': 16} -> {'train': {'batch_size': 16}}."""
    sections: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return sections


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("dimension", "{message}", {"message": message})


def _bounds(kind: str, values: Sequence[Any]) -> tuple[Any, Any]:
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError):
        raise _wrong(f"{kind} expects two numbers: [low, high]") from None
    if not -math.inf < low < high < math.inf or (kind == "loguniform" and low <= 0):
        raise _wrong(f"{kind} expects {'0 < ' if kind == 'loguniform' else ''}low < high")
    if kind != "int":
        return low, high
    if low % 1 or high % 1:
        raise _wrong("int expects whole numbers")
    return int(low), int(high)
