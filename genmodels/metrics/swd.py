"""Sliced Wasserstein distance between the local patches of two image sets, level by level of a Laplacian pyramid.

Karras et al., "Progressive Growing of GANs" (ICLR 2018), section 5 and appendix: the finest level speaks of
pixel-scale texture, the coarsest (16 px) of large-scale structure. Smaller is better; 0 for equal distributions
in the limit of many images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.metrics.images import check_images, quantize

COARSEST = 16  # pixels; the pyramid ends at the last level that is at least this large
PATCH_SIZE = 7
PATCHES_PER_IMAGE = 128
NUM_DIRECTIONS = 4 * 128  # the paper's four repeats of 128; their mean is the mean over all
DIRECTIONS_AT_ONCE = 128  # bounds the memory, changes nothing else
MIN_STD = 1e-3  # grey levels; a channel flatter than this (a collapsed generator) is left unscaled


def sliced_wasserstein(real: Tensor, fake: Tensor, seed: int = 0) -> dict[int, float]:
    """SWD x 1e3 by level size, finest first, of two sets [N, C, S, S] in [-1, 1] with equal N.

    Sets are quantised to 256 levels. From every image at every level 128 patches of 7x7xC at random places,
    standardised per channel by their own set's mean and std; 512 random unit directions; mean |difference| of the
    sorted projections. Images below 16 px have one level, their own size, with patches of side min(7, S). Draws
    are a function of the seed alone, on any device. Images of one pixel are points [C] and compared as such, neither
    cut nor standardised. ValueError when the sets differ in shape.
    """
    check_images(real, "real")
    check_images(fake, "fake")
    if real.shape != fake.shape:
        raise ValueError(f"SWD needs sets of equal shape, got real {list(real.shape)} and fake {list(fake.shape)}")
    generator = torch.Generator().manual_seed(seed)
    if real.shape[-1] == 1:
        return {1: 1e3 * sliced_distance(quantize(real).flatten(1), quantize(fake).flatten(1), generator)}
    distances = {}
    for level_real, level_fake in zip(laplacian_pyramid(real), laplacian_pyramid(fake), strict=True):
        patches_real = standardized_patches(level_real, generator)
        patches_fake = standardized_patches(level_fake, generator)
        distances[level_real.shape[-1]] = 1e3 * sliced_distance(patches_real, patches_fake, generator)
    return distances


def laplacian_pyramid(images: Tensor) -> Iterator[Tensor]:
    """Levels [N, C, S, S] of the quantised images, in grey levels, finest first; the last one is the low-pass rest.

    Burt & Adelson 1983: a level is the image minus its upsampled next level. Sides halve (rounded up) while they
    stay at 16 px or more, so the levels sum back to the image.
    """
    level = quantize(images) * 127.5
    while (level.shape[-1] + 1) // 2 >= COARSEST:
        coarser = blur(level)[..., ::2, ::2]
        yield level - upsample(coarser, level.shape[-1])
        level = coarser
    yield level


def blur(images: Tensor) -> Tensor:
    """Images [N, C, S, S] under the 5x5 binomial filter (1, 4, 6, 4, 1) / 16 a side, the border reflected."""
    rows = binomial(F.pad(images, (2, 2, 2, 2), mode="reflect"), dim=2)
    return binomial(rows, dim=3)


def binomial(images: Tensor, dim: int) -> Tensor:
    """The five-tap filter along `dim`, which it shortens by 4. Sums of slices: ten times conv2d's speed on the CPU."""
    outer_left, left, middle, right, outer_right = (images.narrow(dim, k, images.shape[dim] - 4) for k in range(5))
    return middle.mul(6).add_(left + right, alpha=4).add_(outer_left).add_(outer_right).div_(16)


def upsample(images: Tensor, size: int) -> Tensor:
    """Images at twice their size (or one pixel less, when `size` is odd): zeros between the pixels, then the filter."""
    spread = images.new_zeros(*images.shape[:2], size, size)
    spread[..., ::2, ::2] = images
    return blur(spread) * 4


def standardized_patches(level: Tensor, generator: torch.Generator) -> Tensor:
    """Patches [N * 128, P * P * C] at random places of [N, C, S, S]; channels have mean 0 and std 1 over the set."""
    num, channels, size, _ = level.shape
    side = min(PATCH_SIZE, size)
    shape = (2, num, PATCHES_PER_IMAGE)
    top, left = torch.randint(size - side + 1, shape, generator=generator).to(level.device)
    windows = level.permute(0, 2, 3, 1).contiguous().unfold(1, side, 1).unfold(2, side, 1).permute(0, 1, 2, 4, 5, 3)
    patches = windows[torch.arange(num, device=level.device)[:, None], top, left].view(-1, side * side * channels)
    mean = per_channel(patches.mean(0), channels)
    chunks = patches.split(4096)  # of the size of a cache: one pass over the memory instead of three
    squares = sum((chunk.sub_(mean).square().sum(0) for chunk in chunks), torch.zeros_like(mean))
    patches /= per_channel(squares / len(patches), channels).sqrt().clamp_min(MIN_STD)
    return patches


def per_channel(means: Tensor, channels: int) -> Tensor:
    """Means [P * P * C] of a patch's values, replaced by their mean over the P * P places of each channel."""
    return means.view(-1, channels).mean(0).expand(len(means) // channels, channels).flatten()


def sliced_distance(first: Tensor, second: Tensor, generator: torch.Generator) -> float:
    """Mean over random unit directions of the 1-D Wasserstein-1 distance between two point sets [P, D]."""
    directions = torch.randn(NUM_DIRECTIONS, first.shape[1], generator=generator).to(first)
    directions /= directions.norm(dim=1, keepdim=True)
    # The two buffers are reused: fresh memory for every block costs more than the sorting.
    buffers = [first.new_empty(DIRECTIONS_AT_ONCE, len(first)) for _ in range(2)]
    total = 0.0
    for block in directions.split(DIRECTIONS_AT_ONCE):
        for points, buffer in zip((first, second), buffers, strict=True):
            torch.mm(block, points.T, out=buffer)
            sort_rows(buffer)
        total += float(buffers[0].sub_(buffers[1]).abs_().mean(dim=1).sum())
    return total / NUM_DIRECTIONS


def sort_rows(rows: Tensor) -> None:
    """Sort each row in place. On the CPU through NumPy, whose vectorised sort is about ten times torch's speed."""
    if rows.device.type == "cpu":
        np.ndarray.sort(rows.numpy(), axis=1)
    else:
        rows.copy_(rows.sort(dim=1).values)
