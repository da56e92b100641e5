"""Tensors to pictures: 8-bit pixels, grids, PNG."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

INK = torch.tensor([-0.8, -0.8, 0.2])  # dark blue


def to_uint8(images: Tensor) -> np.ndarray:
    """Images [N, C, H, W] in [-1, 1] -> uint8 [N, H, W, C]; values outside are clipped."""
    scaled = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).numpy()


def grid(images: Tensor, columns: int | None = None, min_side: int = 1, border: int = 1) -> Image.Image:
    """One picture of [N, C, H, W], row by row with `border` white pixels between; tiles enlarged to `min_side`.

    Points, [N, 2, 1, 1], are one scatter plot.
    """
    num, channels, height, width = images.shape
    if (channels, height, width) == (2, 1, 1):
        return as_image(to_uint8(scatter(images.flatten(1))[None])[0])
    columns = columns or max(1, int(num**0.5))
    scale = max(1, -(-min_side // height))
    images = F.interpolate(images.float().cpu(), scale_factor=scale, mode="nearest")
    tiles = to_uint8(F.pad(images, [0, border, 0, border], value=1.0))
    rows = -(-num // columns)
    sheet = np.full((rows * tiles.shape[1], columns * tiles.shape[2], tiles.shape[3]), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * tile.shape[0], i % columns * tile.shape[1]
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return as_image(sheet)


def as_image(pixels: np.ndarray) -> Image.Image:
    """Uint8 [H, W, C], C 1 or 3, as a Pillow image."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def save_each(images: Iterable[Tensor], folder: Path) -> int:
    """Writes images [C, H, W], one after the other, as 00000.png, 00001.png … and returns their number."""
    folder.mkdir(parents=True, exist_ok=True)
    num = 0
    for num, image in enumerate(images, 1):
        grid(image[None], columns=1, border=0).save(folder / f"{num - 1:05d}.png")
    return num


def scatter(points: Tensor, colours: Tensor = INK, limit: float = 1.0, side: int = 256) -> Tensor:
    """A picture [3, side, side] in [-1, 1] of points [N, 2] within [-limit, limit], x to the right and y up.

    colours: [N, 3] in [-1, 1], or [3] for all. What lies outside is left out.
    """
    picture = torch.ones(3, side, side)
    places = (
        (points.detach().float().cpu().nan_to_num(2 * limit) / limit * torch.tensor([1.0, -1.0]) + 1) / 2 * side
    ).long()
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
