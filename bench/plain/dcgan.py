"""DCGAN (Radford et al. 2016), as the PyTorch tutorial has it, with latents drawn for each of the two updates."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from bench.plain.nets import decoder, encoder


class Script(nn.Module):
    def __init__(self, channels, size, latent_dim, width):
        super().__init__()
        self.latent_dim = latent_dim
        self.generator = nn.Sequential(decoder(latent_dim, channels, size, width), nn.Tanh())
        self.discriminator = encoder(channels, size, width, 1)
        self.optimizers = [
            torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999)) for net in (self.discriminator, self.generator)
        ]

    def step(self, batch):
        real = batch["image"]
        optimizer_d, optimizer_g = self.optimizers
        ones = torch.ones(len(real), 1, device=real.device)
        zeros = torch.zeros_like(ones)

        with torch.no_grad():
            fake = self.generator(2 * torch.rand(len(real), self.latent_dim, device=real.device) - 1)
        loss_d = F.binary_cross_entropy_with_logits(self.discriminator(real), ones)
        loss_d = loss_d + F.binary_cross_entropy_with_logits(self.discriminator(fake), zeros)
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()

        fake = self.generator(2 * torch.rand(len(real), self.latent_dim, device=real.device) - 1)
        loss_g = F.binary_cross_entropy_with_logits(self.discriminator(fake), ones)
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        return [loss_d, loss_g]
