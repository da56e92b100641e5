"""StarGAN (Choi et al. 2018); the generator moves every fifth step."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from bench.plain.nets import gradient_penalty, translator


class Generator(nn.Module):
    def __init__(self, channels, num_attributes, width, num_blocks):
        super().__init__()
        self.translator = translator(channels + num_attributes, channels, width, num_blocks, "zeros", True, 4)

    def forward(self, images, attributes):
        tiled = attributes[:, :, None, None].expand(-1, -1, *images.shape[2:])
        return self.translator(torch.cat([images, tiled], dim=1))


class Discriminator(nn.Module):
    def __init__(self, channels, size, width, num_attributes):
        super().__init__()
        layers = []
        while size > 3:
            layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.01)]
            channels, width, size = width, 2 * width, size // 2
        self.layers = nn.Sequential(*layers)
        self.score = nn.Conv2d(channels, 1, 3, 1, 1, bias=False)
        self.attributes = nn.Conv2d(channels, num_attributes, size, bias=False)

    def forward(self, images):
        maps = self.layers(images)
        return self.score(maps), self.attributes(maps).flatten(1)


def attribute_loss(logits, attributes):
    return F.binary_cross_entropy_with_logits(logits, attributes, reduction="sum") / len(logits)


class Script(nn.Module):
    def __init__(self, channels, size, num_attributes, width, num_blocks):
        super().__init__()
        self.num_steps = 0
        self.generator = Generator(channels, num_attributes, width, num_blocks)
        self.discriminator = Discriminator(channels, size, width, num_attributes)
        self.optimizers = [
            torch.optim.Adam(net.parameters(), 1e-4, betas=(0.5, 0.999)) for net in (self.discriminator, self.generator)
        ]

    def step(self, batch):
        images, own = batch["image"], batch["attributes"]
        optimizer_d, optimizer_g = self.optimizers

        target = own[torch.rand(len(own), device=own.device).argsort()]
        with torch.no_grad():
            fake = self.generator(images, target)
        real_score, logits = self.discriminator(images)
        loss_d = self.discriminator(fake)[0].mean() - real_score.mean() + attribute_loss(logits, own)
        loss_d = loss_d + 10 * gradient_penalty(lambda x: self.discriminator(x)[0], images, fake)
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()
        losses = [loss_d]

        if self.num_steps % 5 == 0:
            target = own[torch.rand(len(own), device=own.device).argsort()]
            fake = self.generator(images, target)
            score, logits = self.discriminator(fake)
            back = F.l1_loss(self.generator(fake, own), images)
            loss_g = -score.mean() + attribute_loss(logits, target) + 10 * back
            optimizer_g.zero_grad()
            loss_g.backward()
            optimizer_g.step()
            losses.append(loss_g)
        self.num_steps += 1
        return losses
