"""CycleGAN (Zhu et al. 2017)."""

import itertools
import random

import torch
import torch.nn as nn
import torch.nn.functional as F

from bench.plain.nets import translator


def patch_discriminator(channels, width):
    layers = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for stride in (2, 2, 1):
        layers += [nn.Conv2d(width, 2 * width, 4, stride, 1, bias=False), nn.InstanceNorm2d(2 * width)]
        layers += [nn.LeakyReLU(0.2)]
        width *= 2
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))


class Pool:
    def __init__(self, size=50):
        self.size, self.images = size, []

    def exchange(self, fakes):
        shown = []
        for fake in fakes.split(1):
            if len(self.images) < self.size:
                self.images.append(fake)
                shown.append(fake)
            elif random.random() < 0.5:
                shown.append(fake)
            else:
                place = random.randrange(self.size)
                shown.append(self.images[place])
                self.images[place] = fake
        return torch.cat(shown)


def least_squares(logits, target):
    return F.mse_loss(logits, torch.full_like(logits, target))


class Script(nn.Module):
    def __init__(self, channels, size, width, num_blocks):
        super().__init__()
        self.to_b, self.to_a = (
            translator(channels, channels, width, num_blocks, "reflect", False, 3) for _ in range(2)
        )
        self.discriminator_a, self.discriminator_b = (patch_discriminator(channels, width) for _ in range(2))
        self.pool_of_a, self.pool_of_b = Pool(), Pool()
        generators = itertools.chain(self.to_b.parameters(), self.to_a.parameters())
        discriminators = itertools.chain(self.discriminator_a.parameters(), self.discriminator_b.parameters())
        self.optimizers = [torch.optim.Adam(each, 2e-4, betas=(0.5, 0.999)) for each in (generators, discriminators)]

    def step(self, batch):
        a, b = batch["image_A"], batch["image_B"]
        optimizer_g, optimizer_d = self.optimizers

        fake_b, fake_a = self.to_b(a), self.to_a(b)
        loss_g = least_squares(self.discriminator_a(fake_a), 1) + least_squares(self.discriminator_b(fake_b), 1)
        loss_g = loss_g + 10 * (F.l1_loss(self.to_a(fake_b), a) + F.l1_loss(self.to_b(fake_a), b))
        loss_g = loss_g + 5 * (F.l1_loss(self.to_a(a), a) + F.l1_loss(self.to_b(b), b))
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()

        loss_d = 0
        for discriminator, pool, real, fake in (
            (self.discriminator_a, self.pool_of_a, a, fake_a),
            (self.discriminator_b, self.pool_of_b, b, fake_b),
        ):
            fake = pool.exchange(fake.detach())
            loss_d = loss_d + 0.5 * (least_squares(discriminator(real), 1) + least_squares(discriminator(fake), 0))
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()
        return [loss_g, loss_d]
