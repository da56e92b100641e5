"""Adversarial autoencoder (Makhzani et al. 2016) with a Gaussian prior: three updates a batch."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from bench.plain.nets import decoder, encoder


class Script(nn.Module):
    def __init__(self, channels, size, latent_dim, width, hidden):
        super().__init__()
        self.encoder = nn.Sequential(encoder(channels, size, width, latent_dim, norm=False), nn.BatchNorm1d(latent_dim))
        self.decoder = decoder(latent_dim, channels, size, width)
        self.discriminator = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        self.optimizers = [
            torch.optim.Adam([*self.encoder.parameters(), *self.decoder.parameters()], 1e-3),
            torch.optim.Adam(self.discriminator.parameters(), 2e-4, betas=(0.5, 0.999)),
            torch.optim.Adam(self.encoder.parameters(), 2e-4, betas=(0.5, 0.999)),
        ]

    def step(self, batch):
        images = batch["image"]
        reconstruct, discriminate, regularise = self.optimizers
        ones = torch.ones(len(images), 1, device=images.device)
        zeros = torch.zeros_like(ones)

        codes = self.encoder(images)
        error = F.mse_loss(torch.tanh(self.decoder(codes)), images)
        reconstruct.zero_grad()
        error.backward()
        reconstruct.step()

        prior = torch.randn_like(codes)
        loss_d = F.binary_cross_entropy_with_logits(self.discriminator(prior), ones)
        loss_d = loss_d + F.binary_cross_entropy_with_logits(self.discriminator(codes.detach()), zeros)
        discriminate.zero_grad()
        loss_d.backward()
        discriminate.step()

        loss_e = F.binary_cross_entropy_with_logits(self.discriminator(self.encoder(images)), ones)
        regularise.zero_grad()
        loss_e.backward()
        regularise.step()
        return [error, loss_d, loss_e]
