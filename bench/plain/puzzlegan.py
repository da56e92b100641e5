"""Puzzle-GAN (Lee et al. 2018) with the paper's L1 losses; the generator moves every second step."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from bench.plain.nets import base_size, encoder


def cut(images, boxes):
    """The patches [B * P, C, S, S] that boxes [B, P, 4] show, resized to the full square."""
    left, top, right, bottom = boxes.flatten(0, 1).unbind(1)
    zero = torch.zeros_like(left)
    theta = torch.stack([right - left, zero, left + right - 1, zero, bottom - top, top + bottom - 1], dim=1)
    images = images.repeat_interleave(boxes.shape[1], dim=0)
    grid = F.affine_grid(theta.view(-1, 2, 3), images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def union(boxes, size):
    centres = (torch.arange(size, device=boxes.device) + 0.5) / size
    left, top, right, bottom = boxes[..., None].unbind(2)
    columns, rows = (left <= centres) & (centres <= right), (top <= centres) & (centres <= bottom)
    return (rows[..., :, None] & columns[..., None, :]).any(dim=1, keepdim=True).float()


def down(before, after):
    return nn.Sequential(nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2))


def up(before, after):
    return nn.Sequential(nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class Generator(nn.Module):
    def __init__(self, channels, size, noise_dim, embedding_dim, width):
        super().__init__()
        widths = [width * 2**i for i in range(min(base_size(size)[1], 4))]
        self.shape = (widths[-1], size // 2 ** len(widths), size // 2 ** len(widths))
        flat = self.shape[0] * self.shape[1] ** 2
        self.encoder = nn.ModuleList(down(*pair) for pair in zip([channels, *widths[:-1]], widths, strict=True))
        self.embed = nn.Linear(flat, embedding_dim)
        self.mask_start = nn.Sequential(nn.Linear(embedding_dim, flat), nn.ReLU())
        self.image_start = nn.Sequential(nn.Linear(embedding_dim + noise_dim, flat), nn.ReLU())
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.mask_ups = nn.ModuleList(up(2 * before, after) for before, after in pairs)
        self.image_ups = nn.ModuleList(up(2 * before, after) for before, after in pairs)
        self.to_mask = nn.ConvTranspose2d(2 * width, 1, 4, 2, 1)
        self.to_image = nn.ConvTranspose2d(2 * width, channels, 4, 2, 1)

    def forward(self, patches, z):
        maps, sums = patches, []
        for layer in self.encoder:
            maps = layer(maps)
            sums.append(maps.view(len(z), -1, *maps.shape[1:]).sum(dim=1))
        embedding = self.embed(sums[-1].flatten(1))
        mask = self.mask_start(embedding).view(-1, *self.shape)
        image = self.image_start(torch.cat([embedding, z], dim=1)).view(-1, *self.shape)
        for skip, mask_up, image_up in zip(sums[:0:-1], self.mask_ups, self.image_ups, strict=True):
            image = image_up(torch.cat([image, mask], dim=1))
            mask = mask_up(torch.cat([mask, skip], dim=1))
        image = torch.tanh(self.to_image(torch.cat([image, mask], dim=1)))
        return image, torch.sigmoid(self.to_mask(torch.cat([mask, sums[0]], dim=1)))


class Script(nn.Module):
    def __init__(self, channels, size, noise_dim, embedding_dim, width, weight=1e-2):
        super().__init__()
        self.noise_dim, self.weight, self.num_steps = noise_dim, weight, 0
        self.generator = Generator(channels, size, noise_dim, embedding_dim, width)
        self.discriminator = encoder(channels, size, width, 1)
        self.optimizers = [
            torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999)) for net in (self.discriminator, self.generator)
        ]

    def step(self, batch):
        losses = [self.discriminator_step(batch["image"], batch["parts"])]
        if self.num_steps % 2 == 0:
            losses.append(self.generator_step(batch["image"], batch["parts"]))
        self.num_steps += 1
        return losses

    def discriminator_step(self, images, boxes):
        patches, mask = cut(images, boxes), union(boxes, images.shape[-1])
        z = 2 * torch.rand(len(images), self.noise_dim, device=images.device) - 1
        with torch.no_grad():
            fake, _ = self.generator(patches, z)
        order = torch.rand(len(images), device=images.device).argsort()
        strangers = images[order.roll(1)[order.argsort()]]
        loss = F.softplus(-self.discriminator(images)).mean() + F.softplus(self.discriminator(fake)).mean()
        loss = loss + F.softplus(self.discriminator(strangers * mask + images * (1 - mask))).mean()
        loss = loss + F.softplus(self.discriminator(images * mask + strangers * (1 - mask))).mean()
        self.optimizers[0].zero_grad()
        loss.backward()
        self.optimizers[0].step()
        return loss

    def generator_step(self, images, boxes):
        patches, mask = cut(images, boxes), union(boxes, images.shape[-1])
        z = 2 * torch.rand(len(images), self.noise_dim, device=images.device) - 1
        image, guess = self.generator(patches, z)
        loss = F.softplus(-self.discriminator(image)).mean()
        loss = loss + self.weight * ((guess - mask).abs().sum() + (image * guess - images * mask).abs().sum())
        self.optimizers[1].zero_grad()
        loss.backward()
        self.optimizers[1].step()
        return loss
