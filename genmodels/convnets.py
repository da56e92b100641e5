"""The plain strided convolution stacks (Radford et al. 2016) that autoencoders and DCGAN-like models share."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

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
            layers += [nn.LeakyReLU(0.2)]
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
        return [nn.BatchNorm2d(channels), nn.ReLU()] if norm == "batch" else [nn.ReLU()]


def init_dcgan(module: nn.Module) -> None:
    """Weights N(0, 0.02), batch normalisation's N(1, 0.02), biases 0 (Radford et al. 2016, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)
        nn.init.zeros_(module.bias)
