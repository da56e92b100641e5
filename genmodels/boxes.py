"""Boxes [B, P, 4] around parts of images: left, top, right, bottom as fractions of the sides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cut(images: Tensor, boxes: Tensor) -> Tensor:
    """What boxes [B, P, 4] of images [B, C, S, S] show, each resized to the full square: [B, P, C, S, S].

    Bilinear, on the images' device.
    """
    left, top, right, bottom = boxes.flatten(0, 1).to(images.dtype).unbind(1)
    zero = torch.zeros_like(left)
    rows = [
        torch.stack([right - left, zero, left + right - 1], 1),
        torch.stack([zero, bottom - top, top + bottom - 1], 1),
    ]
    repeated = images.repeat_interleave(boxes.shape[1], 0)
    with torch.autocast(images.device.type, enabled=False):  # in bf16 the places would be a fifth of a pixel off
        grid = F.affine_grid(torch.stack(rows, 1), list(repeated.shape), align_corners=False)
        patches = F.grid_sample(repeated, grid, padding_mode="border", align_corners=False)
    return patches.unflatten(0, boxes.shape[:2])


def union(boxes: Tensor, size: int) -> Tensor:
    """1 at the pixels whose centre lies in one of the boxes [B, P, 4], else 0: [B, 1, size, size]."""
    centres = (torch.arange(size, device=boxes.device) + 0.5) / size
    left, top, right, bottom = boxes[..., None].unbind(2)  # [B, P, 1]
    columns, rows = (left <= centres) & (centres <= right), (top <= centres) & (centres <= bottom)  # [B, P, S]
    return (rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True).float()


def masked_l1(images: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Mean absolute difference on [-1, 1] inside masks [B, 1, S, S]."""
    return ((images - truth).abs().mean(1, keepdim=True).mul(mask).sum() / mask.sum()).item()


def scattered(boxes: Tensor) -> Tensor:
    """Boxes [B, P, 4] of the same sizes at places drawn uniformly, from a fixed seed."""
    sizes = boxes[..., 2:] - boxes[..., :2]
    draws = torch.rand(sizes.shape, generator=torch.Generator().manual_seed(0)).to(boxes.device)
    corners = draws * (1 - sizes)
    return torch.cat([corners, corners + sizes], dim=2)


def overlap(guess: Tensor, truth: Tensor) -> float:
    """Intersection over union of masks [B, 1, S, S] of bools, mean over the batch; 1 where both are empty."""
    both, either = (x.flatten(1).sum(1) for x in (guess & truth, guess | truth))
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both).float()).mean().item()
