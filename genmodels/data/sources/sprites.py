"""The embedded data set `sprites`: small drawn pictures whose factors, captions, parts and translations are known.

A sprite is a point in a space of factors; `draw_sprite` draws it from (seed, index), `render` paints it. Changing one
factor with `with_attributes` and rendering again gives the true target of a translation; rendering in the other style
gives the aligned picture of the other domain.
"""

from __future__ import annotations

import cmath
import hashlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from genmodels.data.fields import Box, Record
from genmodels.data.sources.sprite_kinds import ANCHORS, CLASSES, SHAPES, Points, Shape, oval, poly, rect, wheel

Style = Literal["colour", "line"]
RGB = tuple[int, int, int]

STYLES: dict[str, Style] = {"A": "colour", "B": "line"}  # by domain
ATTRIBUTES = ("large", "striped", "hat", "night", "smiling")
LINE_WIDTH = 0.028  # of the picture's side
TEST_SHARE, A_SHARE = 0.1, 0.7  # of all records; of the training records

COLOURS: dict[str, RGB] = {  # colours four places apart contrast: one paints the body, the other its accents
    "red": (228, 52, 52),
    "orange": (250, 140, 30),
    "yellow": (250, 208, 40),
    "green": (70, 180, 75),
    "cyan": (40, 195, 210),
    "blue": (60, 105, 235),
    "purple": (160, 90, 226),
    "pink": (250, 125, 185),
}
GROUNDS: tuple[tuple[RGB, RGB], ...] = (  # by day, by night
    ((198, 228, 250), (28, 34, 78)),
    ((252, 236, 206), (58, 36, 66)),
    ((212, 242, 208), (18, 54, 66)),
    ((232, 218, 248), (44, 30, 86)),
)
FIXED: dict[str, RGB] = {
    "ink": (38, 30, 46),
    "eye": (255, 255, 255),
    "white": (255, 255, 255),
    "brown": (150, 98, 58),
    "leaf": (88, 168, 70),
    "beak": (255, 172, 40),
    "glass": (206, 236, 255),
    "sun": (255, 214, 66),
    "moon": (255, 250, 208),
    "glow": (255, 250, 208),
}
UNLINED = ("ink", "eye")  # paints without an outline


@dataclass(frozen=True)
class Sprite:
    """All factors of a picture."""

    kind: str  # of CLASSES
    colour: str  # of COLOURS
    large: int
    striped: int
    hat: int
    night: int
    smiling: int
    ground: int  # which of GROUNDS
    mirrored: bool
    x: float  # of the foot before it turns, as fractions of the picture's sides from left and top
    y: float
    zoom: float  # factor on the height, about 1
    turn: float  # degrees, anticlockwise
    wording: int  # which words the captions use


def draw_sprite(index: int, seed: int = 0) -> Sprite:
    """The sprite number `index`: kinds take turns, the other factors are independent bits of a hash."""
    digest = hashlib.blake2b(f"sprites/{seed}/{index}".encode(), digest_size=32).digest()
    words = struct.unpack("<16H", digest)
    x, y, zoom, turn = (word / 32768 - 1 for word in words[:4])  # in [-1, 1)
    return Sprite(
        kind=CLASSES[index % len(CLASSES)],
        colour=tuple(COLOURS)[words[4] % len(COLOURS)],
        ground=words[5] % len(GROUNDS),
        mirrored=bool(words[6] % 2),
        x=0.5 + 0.06 * x,
        y=0.935 + 0.025 * y,
        zoom=1 + 0.04 * zoom,
        turn=8 * turn,
        wording=words[7],
        **{name: word % 2 for name, word in zip(ATTRIBUTES, words[8:], strict=False)},
    )


def with_attributes(sprite: Sprite, changes: dict[str, Any]) -> Sprite:
    """The same sprite but for the named attributes, 0 or 1; ValueError for a name that is none."""
    for name in changes:
        if name not in ATTRIBUTES:
            raise ValueError(f"unknown attribute {name!r}; choices: {', '.join(ATTRIBUTES)}")
    return replace(sprite, **changes)


@cache
def _sky(night: int) -> tuple[Shape, ...]:
    """Ground and sun, or moon and stars, in the picture's fractions."""
    ground = Shape("ground", rect(-0.1, 0.82, 1.1, 1.1))
    if not night:
        return ground, Shape("sun", oval(0.14, 0.14, 0.085, 0.085))
    crescent = oval(0.14, 0.15, 0.1, 0.1, 20, 250) + oval(0.18, 0.11, 0.09, 0.09, 220, 40)
    stars = [wheel(at, 0.02, 0.03, 4, sharp=True) for at in (0.88 + 0.12j, 0.93 + 0.42j, 0.07 + 0.5j)]
    return ground, *(Shape("moon", points) for points in [crescent, *stars])


@cache
def _face(at: complex, size: float, smiling: int) -> tuple[Shape, ...]:
    parts = []
    for side in (-0.13, 0.13):
        eye = at + size * complex(side, 0.05)
        parts.append(Shape("eye", oval(eye.real, eye.imag, 0.085 * size, 0.095 * size), "face"))
        parts.append(Shape("ink", oval(eye.real + 0.015, eye.imag - 0.01, 0.048 * size, 0.06 * size), "face"))
    x, y = at.real, at.imag - 0.08 * size
    mouth = oval(x, y, 0.14 * size, 0.12 * size, 180, 360) if smiling else oval(x, y - 0.05, 0.035, 0.035)
    return *parts, Shape("ink", mouth, "face")


@cache
def _hat(at: complex) -> tuple[Shape, ...]:
    cone = [at + point for point in poly(-0.16, 0, 0.16, 0, 0, 0.24)]
    return Shape("accent", cone), Shape("white", oval(at.real, at.imag + 0.21, 0.055, 0.055))


def _place(sprite: Sprite, points: Points) -> Points:
    """Sprite coordinates -> the picture's fractions, imaginary down."""
    height = (0.77 if sprite.large else 0.56) * sprite.zoom
    factor = cmath.rect(height, math.radians(sprite.turn))
    middle = complex(sprite.x, sprite.y - height / 2)  # the sprite turns around it
    if sprite.mirrored:
        points = [-point.conjugate() for point in points]
    return [middle + (factor * (point - 0.5j)).conjugate() for point in points]


def _figure(sprite: Sprite) -> list[Shape]:
    """The sprite's shapes back to front, in the picture's fractions."""
    face, face_size, hat = ANCHORS[sprite.kind]
    shapes = [*SHAPES[sprite.kind], *(_hat(hat) if sprite.hat else []), *_face(face, face_size, sprite.smiling)]
    return [shape._replace(points=_place(sprite, shape.points)) for shape in shapes]


def part_boxes(sprite: Sprite) -> tuple[Box, ...]:
    """The three key parts, two of the kind's own and then the face: (left, top, right, bottom) as fractions."""
    parts: dict[str, Points] = {}
    for shape in _figure(sprite):
        if shape.part:
            parts.setdefault(shape.part, []).extend(shape.points)
    return tuple(_bounds(points) for points in parts.values())


def _bounds(points: Points) -> Box:
    xs, ys = [point.real for point in points], [point.imag for point in points]
    return max(min(xs), 0.0), max(min(ys), 0.0), min(max(xs), 1.0), min(max(ys), 1.0)


def _palette(sprite: Sprite, style: Style) -> dict[str, RGB]:
    names = list(COLOURS)
    body, accent = (COLOURS[names[(names.index(sprite.colour) + away) % len(names)]] for away in (0, 4))
    sky = GROUNDS[sprite.ground][sprite.night]
    own = {"body": body, "stripe": _shade(body, 0.48), "accent": accent}
    paints = FIXED | own | {"sky": sky, "ground": _shade(sky, 1.5 if sprite.night else 0.86)}
    if style == "colour":
        return paints
    return dict.fromkeys(paints, (255, 255, 255)) | dict.fromkeys(("ink", "glow", "stripe"), (0, 0, 0))


def _shade(colour: RGB, factor: float) -> RGB:
    red, green, blue = (min(255, round(value * factor)) for value in colour)
    return red, green, blue


def render(sprite: Sprite, size: int, style: Style = "colour") -> NDArray[np.uint8]:
    """The picture, [size, size, 3]: in "colour", or in "line", black on white with the same geometry."""
    factor = 4 if size <= 64 else 2
    side = size * factor
    paints = _palette(sprite, style)
    image = Image.new("RGB", (side, side), paints["sky"])
    draw = ImageDraw.Draw(image)
    stripes = _stripes(sprite, side, style) if sprite.striped else None
    for shape in [*_sky(sprite.night), *_figure(sprite)]:
        if not shape.paint:
            continue
        corners = _corners(shape.points, side)
        draw.polygon(corners, paints[shape.paint])
        if stripes and shape.paint == "body":
            inside = Image.new("1", image.size)
            ImageDraw.Draw(inside).polygon(corners, 1)
            image.paste(paints["stripe"], mask=ImageChops.logical_and(inside, stripes))
        if shape.paint not in UNLINED:
            closed = corners + corners[:2]
            joint = "curve" if len(corners) < 16 else None  # the outlines of ovals bend too little to need joints
            outline = paints["glow" if shape.paint == "moon" else "ink"]
            draw.line(closed, outline, max(1, round(LINE_WIDTH * side)), joint)
    return np.array(image.reduce(factor))


def _corners(points: Points, side: int) -> list[tuple[int, int]]:
    """Fractions -> whole pixels, so that the last bit of a float cannot show."""
    return [(round(point.real * side), round(point.imag * side)) for point in points]


def _stripes(sprite: Sprite, side: int, style: Style) -> Image.Image:
    """Slanted bands over the whole picture that move with the sprite, mode 1."""
    mask = Image.new("1", (side, side))
    width = 0.09 if style == "colour" else 0.035
    for i in range(-6, 4):
        x = 0.2 * i
        band = poly(x, -0.1, x + width, -0.1, x + width + 0.6, 1.1, x + 0.6, 1.1)
        ImageDraw.Draw(mask).polygon(_corners(_place(sprite, band), side), 1)
    return mask


def caption(sprite: Sprite) -> tuple[str, ...]:
    """Two English captions; each names the kind, the colour, the size, the time and every attribute that is 1."""
    pick = sprite.wording
    size = (("small", "little"), ("large", "big"))[sprite.large][pick % 2]
    time = (("by day", "in the sun"), ("at night", "under the moon"))[sprite.night][pick // 2 % 2]
    worn = ("wearing a hat", "in a party hat")[pick // 4 % 2]
    thing = f"{sprite.colour} {sprite.kind}"
    extras = ["stripes"] * sprite.striped + ["a hat"] * sprite.hat + ["a smile"] * sprite.smiling
    listed = " with " + " and ".join(extras) if extras else ""
    words = ["smiling"] * sprite.smiling + [size] + ["striped"] * sprite.striped + [thing] + [worn] * sprite.hat
    return f"a {size} {thing}{listed} {time}", f"{time} a {' '.join(words)}"


class SpritesSource:
    """`num_images` sprites in two domains: A in colour, B as line drawings.

    The training records of A and B show different sprites (unpaired); the test records show the same ones in both.
    A key's number is the sprite's index, so a record is all that `read` needs.
    """

    classes = CLASSES
    attributes = ATTRIBUTES
    domains = tuple(STYLES)

    def __init__(self, num_images: int = 6000, size: int = 32, seed: int = 0):
        if num_images < 20:
            raise ValueError(f"num_images is {num_images}; sprites need at least 20 for two domains and a test split")
        self.num_images, self.size, self.seed = num_images, size, seed

    def records(self) -> Iterator[Record]:
        """All `num_images` records: training A, training B, test A, test B."""
        num_test = round(self.num_images * TEST_SHARE / 2)  # sprites, each of them in both domains
        num_train = self.num_images - 2 * num_test
        num_a = round(num_train * A_SHARE)
        test = range(num_train, num_train + num_test)
        groups = (
            ("A", "train", range(num_a)),
            ("B", "train", range(num_a, num_train)),
            ("A", "test", test),
            ("B", "test", test),
        )
        for domain, split, indices in groups:
            yield from (self._record(domain, split, index) for index in indices)

    def _record(self, domain: str, split: str, index: int) -> Record:
        sprite = draw_sprite(index, self.seed)
        key = f"{domain}/{split}/{index:06d}"
        return Record(
            key=key,
            file=f"{key}.png",
            label=sprite.kind,
            attributes={name: getattr(sprite, name) for name in ATTRIBUTES},
            captions=caption(sprite),
            parts=part_boxes(sprite),
            domain=domain,
            split=split,
        )

    def read(self, record: Record) -> Image.Image:
        """The record's picture, RGB, `size` x `size`."""
        domain, _, index = record.key.split("/")
        return Image.fromarray(render(draw_sprite(int(index), self.seed), self.size, STYLES[domain]))
