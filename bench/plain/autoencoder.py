"""Autoencoder with mean squared error."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from bench.plain.nets import decoder, encoder


class Script(nn.Module):
    def __init__(self, channels, size, latent_dim, width):
        super().__init__()
        self.encoder = encoder(channels, size, width, latent_dim)
        self.decoder = decoder(latent_dim, channels, size, width)
        self.optimizers = [torch.optim.Adam(self.parameters(), 1e-3)]

    def step(self, batch):
        (optimizer,) = self.optimizers
        images = batch["image"]
        loss = F.mse_loss(torch.tanh(self.decoder(self.encoder(images))), images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return [loss]
