"""How each kind of sprite is drawn: outlines in its own unit coordinates, back to front."""

from __future__ import annotations

import cmath
import math
from typing import NamedTuple

Points = list[complex]  # a closed outline, x + iy


class Shape(NamedTuple):
    """A filled outline; shapes that name the same part make up its box. Paint "" is there for its box only."""

    paint: str
    points: Points
    part: str = ""


class Anchors(NamedTuple):
    """Where a kind wears what all kinds share. It stands on 0, is about 1 wide and high; imaginary is up."""

    face: complex  # its middle
    face_size: float
    hat: complex  # the brim's middle


def oval(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360, num: int = 28) -> Points:
    """Ellipse around x + iy, or its arc from `start` to `stop`, degrees."""
    angles = [math.radians(start + (stop - start) * i / (num - 1)) for i in range(num)]
    return [complex(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


def poly(*xy: float) -> Points:
    """The polygon with the corners x0, y0, x1, y1 and so on."""
    return [complex(x, y) for x, y in zip(xy[::2], xy[1::2], strict=True)]


def rect(left: float, bottom: float, right: float, top: float) -> Points:
    """An upright rectangle."""
    return poly(left, bottom, right, bottom, right, top, left, top)


def wheel(centre: complex, radius: float, depth: float, lobes: int, sharp: bool = False) -> Points:
    """Closed curve around `centre` with `lobes` lobes, the first on top: petals, or the tips of a star if `sharp`."""
    num = lobes * 2 if sharp else lobes * 10
    waves = [abs(math.cos(math.pi * lobes * i / num)) for i in range(num)]
    return [centre + cmath.rect(radius + depth * waves[i], math.pi * (0.5 + 2 * i / num)) for i in range(num)]


ANCHORS: dict[str, Anchors] = {
    "cat": Anchors(face=0.6j, face_size=1.1, hat=0.82j),
    "fish": Anchors(face=0.24 + 0.54j, face_size=1.05, hat=0.22 + 0.78j),
    "bird": Anchors(face=0.12 + 0.68j, face_size=0.95, hat=0.08 + 0.88j),
    "house": Anchors(face=-0.06 + 0.36j, face_size=1.05, hat=0.88j),
    "tree": Anchors(face=0.36j, face_size=1.05, hat=0.85j),
    "flower": Anchors(face=0.58j, face_size=0.9, hat=0.87j),
    "car": Anchors(face=0.02 + 0.5j, face_size=1.1, hat=0.78j),
    "robot": Anchors(face=0.65j, face_size=1.15, hat=0.84j),
    "ghost": Anchors(face=0.6j, face_size=1.15, hat=0.87j),
    "star": Anchors(face=0.48j, face_size=1.05, hat=0.86j),
}
CLASSES = tuple(ANCHORS)
SHAPES: dict[str, tuple[Shape, ...]] = {  # back to front
    "cat": (
        Shape("body", poly(0.1, 0.02, 0.4, 0.04, 0.5, 0.2, 0.5, 0.44, 0.38, 0.44, 0.36, 0.22, 0.1, 0.18), "tail"),
        Shape("body", oval(0, 0.26, 0.27, 0.26)),
        Shape("body", poly(-0.34, 0.6, -0.33, 0.98, -0.08, 0.8), "ears"),
        Shape("body", poly(0.34, 0.6, 0.33, 0.98, 0.08, 0.8), "ears"),
        Shape("body", oval(0, 0.58, 0.36, 0.27)),
        Shape("white", oval(-0.14, 0.05, 0.11, 0.06)),
        Shape("white", oval(0.14, 0.05, 0.11, 0.06)),
    ),
    "fish": (
        Shape("accent", poly(-0.22, 0.52, -0.52, 0.82, -0.44, 0.52, -0.52, 0.22), "tail"),
        Shape("accent", poly(-0.26, 0.66, -0.2, 0.98, 0.0, 0.92, 0.08, 0.76), "fin"),
        Shape("accent", poly(-0.1, 0.32, -0.14, 0.1, 0.02, 0.14, 0.12, 0.28)),
        Shape("body", oval(0.08, 0.52, 0.42, 0.3)),
    ),
    "bird": (
        Shape("beak", rect(-0.14, 0, -0.08, 0.2)),
        Shape("beak", rect(0.06, 0, 0.12, 0.2)),
        Shape("accent", poly(-0.28, 0.42, -0.56, 0.66, -0.52, 0.34, -0.3, 0.22)),
        Shape("beak", poly(0.26, 0.78, 0.58, 0.63, 0.26, 0.5), "beak"),
        Shape("body", oval(-0.04, 0.36, 0.33, 0.25)),
        Shape("body", oval(0.1, 0.66, 0.27, 0.25)),
        Shape("accent", oval(-0.16, 0.4, 0.17, 0.17, 180, 360), "wing"),
    ),
    "house": (
        Shape("brown", rect(0.2, 0.6, 0.34, 0.96), "chimney"),
        Shape("body", rect(-0.36, 0, 0.36, 0.56)),
        Shape("accent", poly(-0.5, 0.52, 0, 0.94, 0.5, 0.52)),
        Shape("brown", rect(0.13, 0, 0.3, 0.24), "door"),
    ),
    "tree": (
        Shape("brown", rect(-0.1, 0, 0.1, 0.2), "trunk"),
        Shape("body", poly(-0.44, 0.14, 0.44, 0.14, 0.1, 0.56, -0.1, 0.56)),
        Shape("body", poly(-0.35, 0.42, 0.35, 0.42, 0.08, 0.78, -0.08, 0.78)),
        Shape("body", poly(-0.25, 0.68, 0.25, 0.68, 0, 0.98), "top"),
    ),
    "flower": (
        Shape("leaf", rect(-0.045, 0, 0.045, 0.4)),
        Shape("leaf", poly(0, 0.02, 0.24, 0.03, 0.42, 0.27, 0.12, 0.22), "leaf"),
        Shape("body", wheel(0.58j, 0.31, 0.13, 6)),
        Shape("", rect(-0.16, 0.76, 0.16, 0.98), "petal"),
        Shape("accent", oval(0, 0.58, 0.22, 0.21)),
    ),
    "car": (
        Shape("body", poly(-0.3, 0.4, -0.22, 0.8, 0.2, 0.8, 0.32, 0.4), "cabin"),
        Shape("body", poly(-0.5, 0.14, 0.52, 0.14, 0.52, 0.4, 0.3, 0.46, -0.46, 0.46)),
        Shape("ink", oval(-0.29, 0.14, 0.14, 0.14)),
        Shape("white", oval(-0.29, 0.14, 0.07, 0.07)),
        Shape("ink", oval(0.29, 0.14, 0.14, 0.14), "wheel"),
        Shape("white", oval(0.29, 0.14, 0.07, 0.07)),
        Shape("glass", poly(-0.22, 0.48, -0.17, 0.73, 0.16, 0.73, 0.24, 0.48)),
    ),
    "robot": (
        Shape("accent", rect(-0.2, 0, -0.06, 0.14)),
        Shape("accent", rect(0.06, 0, 0.2, 0.14)),
        Shape("accent", rect(-0.42, 0.14, -0.26, 0.4), "arm"),
        Shape("accent", rect(0.26, 0.14, 0.42, 0.4)),
        Shape("body", rect(-0.26, 0.1, 0.26, 0.44)),
        Shape("accent", poly(-0.28, 0.82, -0.34, 1, -0.22, 1, -0.2, 0.82), "antennas"),
        Shape("accent", poly(0.28, 0.82, 0.34, 1, 0.22, 1, 0.2, 0.82), "antennas"),
        Shape("body", rect(-0.36, 0.44, 0.36, 0.86)),
    ),
    "ghost": (
        Shape("body", poly(-0.26, 0.4, -0.5, 0.56, -0.42, 0.3, -0.28, 0.24), "arm"),
        Shape("body", poly(0.26, 0.4, 0.5, 0.56, 0.42, 0.3, 0.28, 0.24)),
        Shape(
            "body",
            oval(0, 0.56, 0.34, 0.38, 0, 180)
            + poly(-0.38, 0.04, -0.22, 0.16, -0.13, 0.02, 0, 0.16, 0.13, 0.02, 0.22, 0.16, 0.38, 0.04),
        ),
        Shape("", rect(-0.38, 0.02, 0.38, 0.2), "hem"),
    ),
    "star": (
        Shape("body", wheel(0.48j, 0.26, 0.27, 5, sharp=True)),
        Shape("", rect(-0.52, 0.5, -0.2, 0.76), "arm"),
        Shape("", rect(0.1, 0.02, 0.36, 0.28), "foot"),
    ),
}
