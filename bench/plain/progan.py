"""ProGAN (Karras et al. 2018) at one size, fully faded in, in the official code's order of operations."""

import copy
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from bench.plain.nets import gradient_penalty

HE_GAIN = math.sqrt(2)


class Conv(nn.Module):
    def __init__(self, before, after, kernel, gain=HE_GAIN):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(after))
        self.scale, self.padding = gain / math.sqrt(before * kernel**2), kernel // 2

    def forward(self, x):
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class Dense(nn.Module):
    def __init__(self, before, after, gain=HE_GAIN):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before))
        self.bias = nn.Parameter(torch.zeros(after))
        self.scale = gain / math.sqrt(before)

    def forward(self, x):
        return F.linear(x, self.weight * self.scale, self.bias)


class PixelNorm(nn.Module):
    def forward(self, x):
        return x / torch.sqrt((x**2).mean(dim=1, keepdim=True) + 1e-8)


class MinibatchStddev(nn.Module):
    def forward(self, x):
        y = x.view(4, -1, *x.shape[1:])
        y = torch.sqrt(((y - y.mean(dim=0)) ** 2).mean(dim=0) + 1e-8).mean(dim=(1, 2, 3))
        return torch.cat([x, y.repeat(4).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], dim=1)


def conv(before, after):
    return [Conv(before, after, 3), nn.LeakyReLU(0.2)]


class Generator(nn.Module):
    def __init__(self, latent_dim, widths, channels):
        super().__init__()
        top = widths[0]
        layers = [PixelNorm(), Dense(latent_dim, top * 16, HE_GAIN / 4), nn.Unflatten(1, (top, 4, 4))]
        layers += [nn.LeakyReLU(0.2), PixelNorm(), *conv(top, top), PixelNorm()]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Upsample(scale_factor=2), *conv(before, after), PixelNorm()]
            layers += [*conv(after, after), PixelNorm()]
        self.layers = nn.Sequential(*layers, Conv(widths[-1], channels, 1, 1))

    def forward(self, z):
        return self.layers(z)


class Critic(nn.Module):
    def __init__(self, widths, channels, dense_width):
        super().__init__()
        self.from_rgb = nn.Sequential(Conv(channels, widths[-1], 1), nn.LeakyReLU(0.2))
        self.blocks = nn.ModuleList()  # from the smallest size up
        for after, before in zip(widths, widths[1:], strict=False):
            halve = [Conv(before, after, 3), nn.AvgPool2d(2), nn.LeakyReLU(0.2)]
            self.blocks.append(nn.Sequential(*conv(before, before), *halve))
        self.head = nn.Sequential(
            MinibatchStddev(),
            *conv(widths[0] + 1, widths[0]),
            nn.Flatten(),
            Dense(widths[0] * 16, dense_width),
            nn.LeakyReLU(0.2),
            Dense(dense_width, 1, 1),
        )

    def forward(self, x):
        x = self.from_rgb(x)
        for block in reversed(self.blocks):
            x = block(x)
        return self.head(x).flatten()


class Script(nn.Module):
    def __init__(self, channels, size, latent_dim, fmap_base, fmap_max):
        super().__init__()
        sizes = [2**i for i in range(2, size.bit_length())]
        widths = [min(fmap_base // (s // 2), fmap_max) for s in sizes]
        self.latent_dim = latent_dim
        self.generator = Generator(latent_dim, widths, channels)
        self.critic = Critic(widths, channels, min(fmap_base, fmap_max))
        self.averaged = [copy.deepcopy(self.generator)]  # in a list: not a network that trains
        self.optimizers = [
            torch.optim.Adam(net.parameters(), 1e-3, betas=(0.0, 0.99)) for net in (self.critic, self.generator)
        ]

    def step(self, batch):
        real = batch["image"]
        optimizer_d, optimizer_g = self.optimizers

        with torch.no_grad():
            fake = self.generator(torch.randn(len(real), self.latent_dim, device=real.device))
        real_score = self.critic(real)
        loss_d = self.critic(fake).mean() - real_score.mean() + 1e-3 * (real_score**2).mean()
        loss_d = loss_d + 10 * gradient_penalty(self.critic, real, fake)
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()

        loss_g = -self.critic(self.generator(torch.randn(len(real), self.latent_dim, device=real.device))).mean()
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()

        with torch.no_grad():
            for slow, fast in zip(self.averaged[0].parameters(), self.generator.parameters(), strict=True):
                slow.mul_(0.999).add_(fast, alpha=0.001)
        return [loss_d, loss_g]
