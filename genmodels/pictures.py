"""Tensors to pictures: 8-bit pixels, grids, PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor


def to_uint8(images: Tensor) -> np.ndarray:
    """Images [N, C, H, W] in [-1, 1] -> uint8 [N, H, W, C]; values outside are clipped."""
    scaled = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).numpy()


def grid(images: Tensor, columns: int | None = None, min_side: int = 1) -> Image.Image:
    """One picture of [N, C, H, W], row by row with a white pixel between; small tiles enlarged to `min_side`.

    Points, [N, 2, 1, 1], are one scatter plot.
    """
    num, channels, height, width = images.shape
    if (channels, height, width) == (2, 1, 1):
        return scatter(images.flatten(1))
    columns = columns or max(1, int(num**0.5))
    scale = max(1, -(-min_side // height))
    images = F.interpolate(images.float().cpu(), scale_factor=scale, mode="nearest")
    tiles = to_uint8(F.pad(images, [0, 1, 0, 1], value=1.0))
    rows = -(-num // columns)
    sheet = np.full((rows * (height * scale + 1), columns * (width * scale + 1), tiles.shape[3]), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * tile.shape[0], i % columns * tile.shape[1]
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return as_image(sheet)


def scatter(points: Tensor, side: int = 257) -> Image.Image:
    """Points [N, 2] of [-1, 1] x [-1, 1] on a picture of that square with its axes, y upwards; clipped to it."""
    sheet = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(sheet)
    draw.line([(side // 2, 0), (side // 2, side)], "gainsboro")
    draw.line([(0, side // 2), (side, side // 2)], "gainsboro")
    places = (points.detach().float().cpu().nan_to_num().clamp(-1, 1) + 1) / 2 * (side - 1)
    for x, y in places.tolist():
        draw.ellipse([x - 1, side - 2 - y, x + 1, side - y], "navy")
    return sheet


def as_image(pixels: np.ndarray) -> Image.Image:
    """Uint8 [H, W, C], C 1 or 3, as a Pillow image."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def save_each(images: Tensor, folder: Path) -> list[Path]:
    """Writes [N, C, H, W] as 00000.png, 00001.png … and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05d}.png" for i in range(len(images))]
    for path, image in zip(paths, images.split(1), strict=True):
        (scatter(image.flatten(1)) if image.shape[1] == 2 else as_image(to_uint8(image)[0])).save(path)
    return paths


def scatter(points: Tensor, colours: Tensor, limit: float, side: int = 256) -> Tensor:
    """A picture [3, side, side] in [-1, 1] of points [N, 2] within [-limit, limit], x to the right and y up.

    colours: [N, 3] in [-1, 1], or [3] for all.
    """
    picture = torch.ones(3, side, side)
    places = ((points.detach().cpu() / limit * torch.tensor([1.0, -1.0]) + 1) / 2 * side).long()
    inside = ((places >= 1) & (places < side - 1)).all(1)
    painted = colours.cpu().expand(len(points), 3)[inside].T
    x, y = places[inside].T
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            picture[:, y + dy, x + dx] = painted
    return picture


def class_colours(labels: Tensor, num_classes: int) -> Tensor:
    """A colour for each label, [N, 3] in [-1, 1]: hues around the colour circle."""
    hues = labels.cpu()[:, None] / num_classes + torch.tensor([0.0, 2 / 3, 1 / 3])
    return (torch.cos(2 * torch.pi * hues) * 1.2).clamp(-1, 0.8)
