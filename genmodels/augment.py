"""Differentiable augmentation of what the discriminator sees (Zhao et al. 2020, "DiffAugment")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.model import Noise


def diff_augment(images: Tensor, noise: Noise) -> Tensor:
    """Random brightness, saturation, contrast, shift by up to 1/8 and a cut-out of half the side; [B, C, H, W]."""
    num, _, height, width = images.shape
    brightness, saturation, contrast = noise.uniform(num, 3, 1, 1, 1).unbind(1)
    images = images + brightness - 0.5
    gray = images.mean(1, keepdim=True)
    images = gray + (images - gray) * saturation * 2
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (contrast + 0.5)
    return _cut_out(_shift(images, noise, height // 8), noise, height // 2, width // 2)


def _shift(images: Tensor, noise: Noise, most: int) -> Tensor:
    num, _, height, width = images.shape
    shift = noise.integers(2 * most + 1, num, 2)
    rows = torch.arange(height, device=images.device) + shift[:, :1]  # [B, H], into the padded image
    columns = torch.arange(width, device=images.device) + shift[:, 1:]
    padded = F.pad(images, [most] * 4)
    index = torch.arange(num, device=images.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cut_out(images: Tensor, noise: Noise, cut_height: int, cut_width: int) -> Tensor:
    num, _, height, width = images.shape
    centre = noise.uniform(num, 2, 1)
    rows = torch.arange(height, device=images.device) + 0.5 - centre[:, 0] * height  # [B, H], from pixels' middles
    columns = torch.arange(width, device=images.device) + 0.5 - centre[:, 1] * width
    hole = (rows.abs() < cut_height / 2)[:, :, None] & (columns.abs() < cut_width / 2)[:, None, :]
    return images * ~hole[:, None]
