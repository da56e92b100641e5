"""InfoGAN (Chen et al. 2016): D and Q on one trunk, the information bound subtracted from both losses."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from bench.plain.nets import decoder, encoder


class Discriminator(nn.Module):
    def __init__(self, channels, size, width, hidden, num_parameters):
        super().__init__()
        self.trunk = nn.Sequential(encoder(channels, size, width, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.1))
        self.head = nn.Linear(hidden, 1)
        self.q = nn.Sequential(
            nn.Linear(hidden, 128, bias=False), nn.BatchNorm1d(128), nn.LeakyReLU(0.1), nn.Linear(128, num_parameters)
        )

    def forward(self, real, fake):
        of_real, of_fake = self.trunk(torch.cat([real, fake])).chunk(2)
        return self.head(of_real), self.head(of_fake), self.q(of_fake)


class Script(nn.Module):
    def __init__(self, channels, size, noise_dim, num_categories, num_continuous, width, hidden):
        super().__init__()
        self.noise_dim, self.num_categories, self.num_continuous = noise_dim, num_categories, num_continuous
        self.generator = nn.Sequential(
            nn.Linear(noise_dim + num_categories + num_continuous, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            decoder(hidden, channels, size, width),
            nn.Tanh(),
        )
        self.discriminator = Discriminator(channels, size, width, hidden, num_categories + num_continuous)
        self.optimizers = [
            torch.optim.Adam(self.discriminator.parameters(), 2e-4, betas=(0.5, 0.999)),
            torch.optim.Adam(self.generator.parameters(), 1e-3, betas=(0.5, 0.999)),
        ]

    def draw(self, num, device):
        category = torch.randint(self.num_categories, (num,), device=device)
        rest = 2 * torch.rand(num, self.noise_dim + self.num_continuous, device=device) - 1
        noise, codes = rest.split([self.noise_dim, self.num_continuous], dim=1)
        return torch.cat([noise, F.one_hot(category, self.num_categories).float(), codes], 1), category, codes

    def information(self, parameters, category, codes):
        logits, means = parameters.split([self.num_categories, self.num_continuous], dim=1)
        of_category = math.log(self.num_categories) - F.cross_entropy(logits, category)
        log_q = -0.5 * (codes - means) ** 2 - 0.5 * math.log(2 * math.pi)
        return of_category + (log_q + math.log(2)).sum(dim=1).mean()

    def step(self, batch):
        real = batch["image"]
        optimizer_d, optimizer_g = self.optimizers
        ones = torch.ones(len(real), 1, device=real.device)
        zeros = torch.zeros_like(ones)

        z, category, codes = self.draw(len(real), real.device)
        with torch.no_grad():
            fake = self.generator(z)
        real_logits, fake_logits, parameters = self.discriminator(real, fake)
        loss_d = F.binary_cross_entropy_with_logits(real_logits, ones)
        loss_d = loss_d + F.binary_cross_entropy_with_logits(fake_logits, zeros)
        loss_d = loss_d - self.information(parameters, category, codes)
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()

        z, category, codes = self.draw(len(real), real.device)
        _, fake_logits, parameters = self.discriminator(real, self.generator(z))
        loss_g = F.binary_cross_entropy_with_logits(fake_logits, ones) - self.information(parameters, category, codes)
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        return [loss_d, loss_g]
