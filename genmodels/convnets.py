"""Convolution stacks that several models share: DCGAN's (Radford et al. 2016), and the residual translator's.

Activations are in place: a step is 1.03 to 1.08 times as fast, and keeps one map a layer less.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["reflect", "zeros"]
Norm = Literal["batch", "none"]


def base_size(image_size: int) -> tuple[int, int]:
    """(side of the smallest map, number of doublings from there): 64 -> (4, 4), 28 -> (7, 2).

    ValueError for sizes that do not halve evenly down to 4..7 pixels.
    """
    side, doublings = image_size, 0
    while side > 7 and side % 2 == 0:
        side, doublings = side // 2, doublings + 1
    if not 4 <= side <= 7 or doublings == 0:
        raise ValueError(
            f"image_size {image_size} does not halve down to 4..7 pixels; choices: 28, 32, 48, 64, 96, 128 …"
        )
    return side, doublings


class Encoder(nn.Module):
    """Images [B, channels, S, S] -> [B, out_dim]; widths double with every halving, the first is `width`.

    No normalisation after the first convolution, LeakyReLU 0.2 (Radford et al. 2016).
    """

    def __init__(self, channels: int, image_size: int, width: int, out_dim: int, norm: Norm = "batch"):
        super().__init__()
        side, doublings = base_size(image_size)
        layers: list[nn.Module] = []
        before = channels
        for i in range(doublings):
            after = width * 2**i
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1, bias=norm == "none" or i == 0)]
            layers += [nn.BatchNorm2d(after)] if norm == "batch" and i > 0 else []
            layers += [nn.LeakyReLU(0.2, inplace=True)]
            before = after
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Linear(before * side * side, out_dim)

    def features(self, images: Tensor) -> Tensor:
        """Activations under the head, [B, F]."""
        return self.convolutions(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, channels, S, S] -> [B, out_dim]."""
        return self.head(self.features(images))


class Decoder(nn.Module):
    """Latents [B, in_dim] -> [B, channels, S, S], without a final activation; the last hidden map has `width` channels.

    Projection, then fractionally strided convolutions with ReLU (Radford et al. 2016).
    """

    def __init__(self, in_dim: int, channels: int, image_size: int, width: int, norm: Norm = "batch"):
        super().__init__()
        self.side, doublings = base_size(image_size)
        self.top = width * 2 ** (doublings - 1)
        bias = norm == "none"
        self.project = nn.Linear(in_dim, self.top * self.side**2, bias=bias)
        layers: list[nn.Module] = [*self._after(self.top, norm)]
        before = self.top
        for _ in range(doublings - 1):
            layers += [nn.ConvTranspose2d(before, before // 2, 4, stride=2, padding=1, bias=bias)]
            layers += self._after(before // 2, norm)
            before //= 2
        self.convolutions = nn.Sequential(*layers, nn.ConvTranspose2d(before, channels, 4, stride=2, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        """[B, in_dim] -> [B, channels, S, S]."""
        return self.convolutions(self.project(latents).view(-1, self.top, self.side, self.side))

    @staticmethod
    def _after(channels: int, norm: Norm) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)] if norm == "batch" else [nn.ReLU(inplace=True)]


class PaddedConv2d(nn.Conv2d):
    """nn.Conv2d whose reflection padding has a gradient that adds in a fixed order: torch's, on a GPU, has not."""

    def forward(self, maps: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H, W]."""
        if self.padding_mode != "reflect":
            return super().forward(maps)
        return F.conv2d(reflected(maps, int(self.padding[0])), self.weight, self.bias)


def reflected(maps: Tensor, num: int) -> Tensor:
    """F.pad(maps, [num] * 4, "reflect") of maps [B, C, H, W], by slices."""
    for dim in (2, 3):
        before, after = maps.narrow(dim, 1, num), maps.narrow(dim, maps.shape[dim] - 1 - num, num)
        maps = torch.cat([before.flip(dim), maps, after.flip(dim)], dim)
    return maps


class ResidualBlock(nn.Module):
    """x + f(x) with f two 3x3 convolutions under instance normalisation (Johnson et al. 2016)."""

    def __init__(self, channels: int, padding: Padding, affine: bool):
        super().__init__()
        self.body = nn.Sequential(
            PaddedConv2d(channels, channels, 3, padding=1, padding_mode=padding, bias=False),
            nn.InstanceNorm2d(channels, affine=affine),
            nn.ReLU(inplace=True),
            PaddedConv2d(channels, channels, 3, padding=1, padding_mode=padding, bias=False),
            nn.InstanceNorm2d(channels, affine=affine),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """[B, channels, H, W] -> the same shape."""
        return maps + self.body(maps)


class ResNetTranslator(nn.Module):
    """Images [B, in_channels, S, S] -> [B, out_channels, S, S] in [-1, 1]; S divides by 4.

    Convolution to `width`, two halvings, residual blocks at 4 `width` channels, two doublings, convolution, tanh.
    outer_kernel, odd: of the first and the last, 7 in both papers. scaling_kernel: of the halvings and doublings, 3
    in CycleGAN (Zhu et al. 2017), 4 in StarGAN (Choi et al. 2018). Under reflection padding a constant channel of
    the input has no effect, as the first normalisation takes its mean away; a translator that is told something in
    constant channels needs zeros.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        num_blocks: int,
        padding: Padding,
        affine: bool,
        scaling_kernel: Literal[3, 4],
        outer_kernel: int,
    ):
        super().__init__()
        k, odd = scaling_kernel, scaling_kernel % 2

        def outer(before: int, after: int, bias: bool) -> nn.Module:
            return PaddedConv2d(before, after, outer_kernel, padding=outer_kernel // 2, padding_mode=padding, bias=bias)

        def after(channels: int) -> list[nn.Module]:
            return [nn.InstanceNorm2d(channels, affine=affine), nn.ReLU(inplace=True)]

        def halving(channels: int) -> list[nn.Module]:
            down = nn.Conv2d(channels, 2 * channels, k, stride=2, padding=1, bias=False)
            return [down, *after(2 * channels)]

        def doubling(channels: int) -> list[nn.Module]:
            up = nn.ConvTranspose2d(channels, channels // 2, k, stride=2, padding=1, output_padding=odd, bias=False)
            return [up, *after(channels // 2)]

        self.layers = nn.Sequential(
            outer(in_channels, width, bias=False),
            *after(width),
            *halving(width),
            *halving(2 * width),
            *(ResidualBlock(4 * width, padding, affine) for _ in range(num_blocks)),
            *doubling(4 * width),
            *doubling(2 * width),
            outer(width, out_channels, bias=True),
        )

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, S, S] -> [B, out_channels, S, S], fp32."""
        return torch.tanh(self.layers(images).float())


def check_divides(image_size: int, by: int, model: str) -> None:
    """ValueError unless `image_size` is a multiple of `by`."""
    if image_size % by:
        raise ValueError(f"{model} needs an image_size that divides by {by}, not {image_size}")


def init_dcgan(module: nn.Module) -> None:
    """Weights N(0, 0.02), batch normalisation's N(1, 0.02), biases 0 (Radford et al. 2016, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)
        nn.init.zeros_(module.bias)
