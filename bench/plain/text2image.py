"""GAN-INT-CLS (Reed et al. 2016) on the embeddings of a frozen text encoder: the adversarial stage."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from bench.plain.nets import base_size, decoder, encoder


class TextEncoder(nn.Module):
    def __init__(self, num_tokens, dim):
        super().__init__()
        self.words = nn.Embedding(num_tokens, dim, padding_idx=0)
        self.convolution = nn.Conv1d(dim, dim, 3, padding=1)
        self.head = nn.Linear(dim, dim)

    def forward(self, tokens):
        present = (tokens != 0).unsqueeze(1)
        maps = F.leaky_relu(self.convolution(self.words(tokens).transpose(1, 2)), 0.2) * present
        embeddings = self.head(maps.sum(dim=2) / present.sum(dim=2).clamp(min=1))
        return F.normalize(embeddings, dim=1) * math.sqrt(embeddings.shape[1])


class Generator(nn.Module):
    def __init__(self, channels, size, latent_dim, width, embedding_dim, text_dim):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(embedding_dim, text_dim), nn.LeakyReLU(0.2))
        self.decoder = decoder(latent_dim + text_dim, channels, size, width)

    def forward(self, z, text):
        return torch.tanh(self.decoder(torch.cat([z, self.project(text)], dim=1)))


class Discriminator(nn.Module):
    def __init__(self, channels, size, width, embedding_dim, text_dim):
        super().__init__()
        side, doublings = base_size(size)
        top = width * 2 ** (doublings - 1)
        self.convolutions = encoder(channels, size, width, 1)[:-2]
        self.project = nn.Sequential(nn.Linear(embedding_dim, text_dim), nn.LeakyReLU(0.2))
        self.join = nn.Sequential(nn.Conv2d(top + text_dim, top, 1, bias=False), nn.BatchNorm2d(top), nn.LeakyReLU(0.2))
        self.head = nn.Conv2d(top, 1, side)

    def judge(self, maps, text):
        text = self.project(text)[:, :, None, None].expand(-1, -1, *maps.shape[2:])
        return self.head(self.join(torch.cat([maps, text], dim=1))).flatten(1)

    def forward(self, images, text):
        return self.judge(self.convolutions(images), text)


class Script(nn.Module):
    def __init__(self, channels, size, num_tokens, latent_dim, width, embedding_dim, text_dim):
        super().__init__()
        self.latent_dim = latent_dim
        self.text_encoder = TextEncoder(num_tokens, embedding_dim)
        self.generator = Generator(channels, size, latent_dim, width, embedding_dim, text_dim)
        self.discriminator = Discriminator(channels, size, width, embedding_dim, text_dim)
        self.optimizers = [
            torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999)) for net in (self.discriminator, self.generator)
        ]

    def draw(self, captions):
        drawn = torch.randint(captions.shape[1], (len(captions),), device=captions.device)
        with torch.no_grad():
            text = self.text_encoder(captions[torch.arange(len(captions)), drawn])
        return text, torch.randn(len(captions), self.latent_dim, device=captions.device)

    def step(self, batch):
        images, captions = batch["image"], batch["caption"]
        optimizer_d, optimizer_g = self.optimizers
        same = (captions[:, None, :, None] == captions[None, :, None, :]).all(-1).flatten(2).any(-1)
        is_wrong = (~same.roll(1, 1).diagonal()).float()

        text, z = self.draw(captions)
        with torch.no_grad():
            fake = self.generator(z, text)
        maps = self.discriminator.convolutions(images)
        right, wrong = self.discriminator.judge(maps, text), self.discriminator.judge(maps, text.roll(1, 0))
        loss_d = F.softplus(-right).mean() + 0.5 * F.softplus(self.discriminator(fake, text)).mean()
        loss_d = loss_d + 0.5 * (F.softplus(wrong).flatten() * is_wrong).sum() / is_wrong.sum().clamp(min=1)
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()

        text, z = self.draw(captions)
        between = 0.5 * text + 0.5 * text.roll(1, 0)
        loss_g = F.softplus(-self.discriminator(self.generator(z, text), text)).mean()
        loss_g = loss_g + F.softplus(-self.discriminator(self.generator(z, between), between)).mean()
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        return [loss_d, loss_g]
