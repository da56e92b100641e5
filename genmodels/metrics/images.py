"""What every score asks of its images, and the grey levels that they are compared at."""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST = 4  # images of a set that all scores take: precision and recall look at the three nearest


def check_images(images: Tensor, name: str) -> None:
    """ValueError, naming the set, unless `images` is [N >= 2, 1 or 3, S, S] or [N >= 2, 2, 1, 1] of finite floats."""
    is_points = images.shape[1:] == (2, 1, 1)
    if not is_points and (images.dim() != 4 or images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]):
        raise ValueError(f"{name}: expected square images [N, 1 or 3, S, S], got {list(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"{name}: expected float images in [-1, 1], got {images.dtype}")
    if len(images) < 2:
        raise ValueError(f"{name}: expected at least 2 images, got {len(images)}")
    num_bad = int((~images.isfinite().flatten(1).all(dim=1)).sum())
    if num_bad:
        raise ValueError(f"{name}: {num_bad} of {len(images)} images hold values that are not finite")


def quantize(images: Tensor) -> Tensor:
    """Images in [-1, 1] at the 256 levels that they would have on disk, still in [-1, 1]; clamps first."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def random_subset(images: Tensor, num: int, seed: int) -> Tensor:
    """`num` of the images (all of them when there are fewer), in random order, without replacement."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:num].to(images.device)]
