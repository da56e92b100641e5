"""The contact sheet of a prepared data set: some of its images, held-out ones apart, with what is known of each."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from genmodels.data.cache import ShardCache
from genmodels.data.fields import Box, DataSpec
from genmodels.data.images import Pixels
from genmodels.data.reader import ShardReader
from genmodels.data.shards import open_shards
from genmodels.pictures import as_image, class_colours, scatter, to_uint8
from genmodels.text import one_line

MAX_IMAGES, MAX_COLUMNS, MAX_ROWS = 64, 8, 12
MAX_POINTS = 4000
TILE = 128  # pixels; smaller images are enlarged by a whole factor, larger ones scaled down
GAP, LINE, TITLE = 8, 13, 24  # pixels: between tiles, a line of text, a row's title
INK, FAINT, TRAINING, HELD_OUT = (20, 20, 20), (90, 90, 90), (243, 243, 243), (220, 230, 248)
PARTS = ((255, 40, 40), (0, 220, 255), (255, 220, 0), (60, 255, 60))  # outlines of the first, second, ... box
SPLITS = (("train", "training"), ("test", "held out"))


class Row(NamedTuple):
    """What the images of one row have in common."""

    title: str
    domain: str | None = None
    label: int | None = None


class Tile(NamedTuple):
    """One image with its boxes, and the lines below it."""

    picture: Image.Image
    lines: list[str]


def contact_sheet(folder: Path, shards: ShardCache | None = None) -> Image.Image:
    """About 64 images of the data set in `folder` as one RGB picture: a row a domain, else a row a class.

    Always the same ones: the first in the shards' order, which a hash decides. Points are two scatter plots. Shards of
    a store come through the cache `shards`.
    """
    spec = open_shards(folder).spec
    if spec.channels == 2:
        return _scatter_plots(folder, spec, shards)
    rows = _rows(spec)
    num_columns = min(MAX_COLUMNS, MAX_IMAGES // len(rows))
    num_test = max(1, num_columns // 4) if spec.num_test else 0
    columns = {"train": num_columns - num_test, "test": num_test}
    num_lines = max(1, MAX_IMAGES // (len(rows) * num_columns))
    size = min((size for size in spec.sizes if size >= TILE), default=spec.sizes[-1])
    reader = cache(lambda split, domain: ShardReader(folder, split, size, domain, shards))
    tiles = {
        split: [_tiles(reader(split, row.domain), row, number * num_lines) if number else [] for row in rows]
        for split, number in columns.items()
    }
    return _draw(spec, rows, columns, tiles)


def _rows(spec: DataSpec) -> list[Row]:
    """Domains, or at most MAX_ROWS classes evenly spread over their names, or one row of everything."""
    if spec.domains:
        return [Row(f"domain {domain}", domain) for domain in spec.domains]
    if not spec.classes:
        return [Row("all images")]
    num = min(MAX_ROWS, len(spec.classes))
    labels = [i * len(spec.classes) // num for i in range(num)]
    return [Row(one_line(spec.classes[label], 60), label=label) for label in labels]


def _tiles(reader: ShardReader, row: Row, num: int) -> list[Tile]:
    """The row's first `num` images."""
    every = np.arange(reader.num) if row.label is None else np.flatnonzero(reader.labels == row.label)
    ids = every[:num]
    described = zip(reader.read(ids), reader.about(ids), strict=True)
    return [Tile(_tile(pixels, about["parts"] or ()), _lines(about, reader.spec, row)) for pixels, about in described]


def _tile(pixels: Pixels, parts: list[Box] | tuple[Box, ...]) -> Image.Image:
    """The image at the size it is shown, with its key parts outlined."""
    image = as_image(pixels).convert("RGB")
    if image.width > TILE:
        image = image.resize((TILE, TILE), Image.Resampling.LANCZOS)
    else:
        side = image.width * (TILE // image.width)
        image = image.resize((side, side), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for number, box in enumerate(parts):
        left, top, right, bottom = (round(edge * (image.width - 1)) for edge in box)
        draw.rectangle((left, top, right, bottom), outline=PARTS[number % len(PARTS)], width=2)
    return image


def _lines(about: dict[str, Any], spec: DataSpec, row: Row) -> list[str]:
    """What is known of an image and not said by its row's title."""
    lines = []
    if row.label is None and about["class"] is not None:
        lines += _wrapped(about["class"], 1)
    if spec.group:
        lines += _wrapped(f"{spec.group} {about['group']}", 1)
    if spec.attributes:
        present = [name for name, value in zip(spec.attributes, about["attributes"], strict=True) if value]
        lines += _wrapped("+ " + ", ".join(present) if present else "no attribute", 3)
    return lines + (_wrapped(about["captions"][0], 4) if about["captions"] else [])


def _wrapped(text: str, num_lines: int) -> list[str]:
    """At most so many lines, each as wide as a tile at most; words longer than that are cut."""
    words, lines = one_line(text).split(), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if _width(longer) <= TILE:
            lines[-1] = longer
        elif len(lines) == num_lines:
            lines[-1] = _cut(longer)
            break
        else:
            lines = [line for line in lines if line] + [_cut(word)]
    return lines


def _cut(text: str) -> str:
    if _width(text) <= TILE:
        return text
    while text and _width(f"{text}…") > TILE:
        text = text[:-1]
    return f"{text}…"


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _width(text: str) -> float:
    return _font(LINE - 2).getlength(text)


def _draw(spec: DataSpec, rows: list[Row], columns: dict[str, int], tiles: dict[str, list[list[Tile]]]) -> Image.Image:
    """Rows below one another; training on the left, held-out images on a tinted ground on the right."""
    bands = [_bands(columns, {split: tiles[split][number] for split in tiles}) for number in range(len(rows))]
    left = {"train": GAP, "test": 3 * GAP + columns["train"] * (TILE + GAP)}
    width = left["test"] + columns["test"] * (TILE + GAP) if columns["test"] else left["test"] - 2 * GAP
    height = TITLE + sum(TITLE + sum(map(_height, several)) for several in bands)
    sheet = Image.new("RGB", (width, height), TRAINING)
    draw = ImageDraw.Draw(sheet)
    if columns["test"]:
        draw.rectangle((left["test"] - GAP, 0, width, height), fill=HELD_OUT)
    for split, title in SPLITS:
        if columns[split]:
            number = spec.num_train if split == "train" else spec.num_test
            draw.text((left[split], 5), f"{title} ({number:,})", FAINT, _font(LINE))
    if rows[0].label is not None and len(rows) < len(spec.classes):
        draw.text((left["train"] + TILE, 5), f"{len(rows)} of {len(spec.classes):,} classes", FAINT, _font(LINE))
    y = TITLE
    for row, several in zip(rows, bands, strict=True):
        draw.text((GAP, y + 4), row.title, INK, _font(LINE + 1))
        y += TITLE
        for band in several:
            for split, place, tile in band:
                _draw_tile(sheet, draw, left[split] + place * (TILE + GAP), y, tile)
            y += _height(band)
    return sheet


Band = list[tuple[str, int, Tile]]  # tiles side by side: split, column, tile


def _bands(columns: dict[str, int], tiles: dict[str, list[Tile]]) -> list[Band]:
    """The tiles of a row, filled into its lines from left to right."""
    bands: dict[int, Band] = {}
    for split, several in tiles.items():
        for number, tile in enumerate(several):
            line, place = divmod(number, columns[split])
            bands.setdefault(line, []).append((split, place, tile))
    return [bands[line] for line in sorted(bands)]


def _height(band: Band) -> int:
    return max(tile.picture.height + LINE * len(tile.lines) for _, _, tile in band) + 2 * GAP


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, tile: Tile) -> None:
    sheet.paste(tile.picture, (x, y))
    for number, line in enumerate(tile.lines):
        draw.text((x, y + tile.picture.height + 2 + LINE * number), line, INK, _font(LINE - 2))


def _scatter_plots(folder: Path, spec: DataSpec, shards: ShardCache | None) -> Image.Image:
    """Points of each split, coloured by class."""
    side = 3 * TILE
    sheet = Image.new("RGB", (2 * side + 3 * GAP, side + TITLE + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (split, title) in enumerate(SPLITS):
        reader = ShardReader(folder, split, spec.sizes[-1], cache=shards)
        ids: NDArray[np.int64] = np.arange(min(MAX_POINTS, reader.num))
        points = torch.from_numpy(reader.read(ids).reshape(-1, 2)) / 127.5 - 1
        labels = torch.from_numpy(reader.labels[ids]) if spec.classes else torch.zeros(len(ids))
        picture = scatter(points, class_colours(labels, max(1, len(spec.classes))), side=side)
        x = GAP + number * (side + GAP)
        draw.text((x, 5), f"{title} ({reader.num:,})", FAINT, _font(LINE))
        sheet.paste(as_image(to_uint8(picture[None])[0]), (x, TITLE))
        draw.rectangle((x, TITLE, x + side - 1, TITLE + side - 1), outline=FAINT)
    return sheet
