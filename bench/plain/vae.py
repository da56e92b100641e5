"""VAE (Kingma & Welling 2014) with a Gaussian likelihood of known sigma; both terms in nats an image."""

import math

import torch
import torch.nn as nn

from bench.plain.nets import decoder, encoder


class Script(nn.Module):
    def __init__(self, channels, size, latent_dim, width, sigma):
        super().__init__()
        self.sigma = sigma
        self.encoder = encoder(channels, size, width, 2 * latent_dim)
        self.decoder = decoder(latent_dim, channels, size, width)
        self.optimizers = [torch.optim.Adam(self.parameters(), 1e-3)]

    def step(self, batch):
        (optimizer,) = self.optimizers
        images = batch["image"]
        mean, logvar = self.encoder(images).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        error = (images - torch.tanh(self.decoder(z))) / self.sigma
        log_prob = -0.5 * error**2 - math.log(self.sigma) - 0.5 * math.log(2 * math.pi)
        kl = 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(dim=1)
        loss = (kl - log_prob.flatten(1).sum(dim=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return [loss]
