"""GAN (Goodfellow et al. 2014) of two multi-layer perceptrons."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def mlp(in_dim, hidden, out_dim, activation):
    return nn.Sequential(
        nn.Linear(in_dim, hidden), activation, nn.Linear(hidden, hidden), activation, nn.Linear(hidden, out_dim)
    )


class Script(nn.Module):
    def __init__(self, channels, size, latent_dim, hidden):
        super().__init__()
        self.latent_dim = latent_dim
        self.generator = mlp(latent_dim, hidden, channels * size * size, nn.ReLU())
        self.discriminator = mlp(channels * size * size, hidden, 1, nn.LeakyReLU(0.2))
        self.optimizers = [
            torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999)) for net in (self.discriminator, self.generator)
        ]

    def step(self, batch):
        real = batch["image"].flatten(1)
        optimizer_d, optimizer_g = self.optimizers
        ones = torch.ones(len(real), 1, device=real.device)
        zeros = torch.zeros_like(ones)

        with torch.no_grad():
            fake = torch.tanh(self.generator(2 * torch.rand(len(real), self.latent_dim, device=real.device) - 1))
        loss_d = F.binary_cross_entropy_with_logits(self.discriminator(real), ones)
        loss_d = loss_d + F.binary_cross_entropy_with_logits(self.discriminator(fake), zeros)
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()

        fake = torch.tanh(self.generator(2 * torch.rand(len(real), self.latent_dim, device=real.device) - 1))
        loss_g = F.binary_cross_entropy_with_logits(self.discriminator(fake), ones)
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        return [loss_d, loss_g]
