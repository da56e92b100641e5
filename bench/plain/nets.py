"""The convolution stacks of the DCGAN tutorial, the ResNet of CycleGAN and StarGAN, and WGAN-GP's penalty."""

import torch
import torch.nn as nn


def base_size(size):
    side, doublings = size, 0
    while side > 7:
        side, doublings = side // 2, doublings + 1
    return side, doublings


def encoder(channels, size, width, out_dim, norm=True):
    side, doublings = base_size(size)
    layers = []
    for i in range(doublings):
        layers.append(nn.Conv2d(channels, width * 2**i, 4, 2, 1, bias=not norm or i == 0))
        if norm and i > 0:
            layers.append(nn.BatchNorm2d(width * 2**i))
        layers.append(nn.LeakyReLU(0.2))
        channels = width * 2**i
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, out_dim))


def decoder(latent_dim, channels, size, width):
    side, doublings = base_size(size)
    top = width * 2 ** (doublings - 1)
    layers = [nn.Linear(latent_dim, top * side * side, bias=False), nn.Unflatten(1, (top, side, side))]
    for _ in range(doublings - 1):
        layers += [nn.BatchNorm2d(top), nn.ReLU(), nn.ConvTranspose2d(top, top // 2, 4, 2, 1, bias=False)]
        top //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(top), nn.ReLU(), nn.ConvTranspose2d(top, channels, 4, 2, 1))


class Residual(nn.Module):
    def __init__(self, channels, padding, affine):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, padding_mode=padding, bias=False),
            nn.InstanceNorm2d(channels, affine=affine),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, padding_mode=padding, bias=False),
            nn.InstanceNorm2d(channels, affine=affine),
        )

    def forward(self, x):
        return x + self.body(x)


def translator(in_channels, out_channels, width, num_blocks, padding, affine, k):
    def after(channels):
        return [nn.InstanceNorm2d(channels, affine=affine), nn.ReLU()]

    layers = [nn.Conv2d(in_channels, width, 7, 1, 3, padding_mode=padding, bias=False), *after(width)]
    for _ in range(2):
        layers += [nn.Conv2d(width, 2 * width, k, 2, 1, bias=False), *after(2 * width)]
        width *= 2
    layers += [Residual(width, padding, affine) for _ in range(num_blocks)]
    for _ in range(2):
        layers += [nn.ConvTranspose2d(width, width // 2, k, 2, 1, output_padding=k % 2, bias=False), *after(width // 2)]
        width //= 2
    return nn.Sequential(*layers, nn.Conv2d(width, out_channels, 7, 1, 3, padding_mode=padding), nn.Tanh())


def gradient_penalty(critic, real, fake, target=1.0):
    alpha = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = (real + alpha * (fake - real)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - target) ** 2).mean() / target**2
