"""Generative adversarial network (Goodfellow et al. 2014), of two multi-layer perceptrons.

    min_G max_D  V(D, G) = E[log D(x)] + E[log(1 - D(G(z)))],   z ~ U(-1, 1)^Z

Its optimal discriminator is D* = p / (p + q), and V(D*, G) = 2 JSD(p, q) - log 4 (section 4.1), p the data's density
and q the generator's. On the ring of Gaussians p is known and q can be counted, so there the proofs check both.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from genmodels.adversarial import AdversarialConfig, normalise
from genmodels.data.fields import DataSpec
from genmodels.data.sources.ring import NUM_MODES, RADIUS, SIGMA, ring_centres, ring_log_density, ring_points
from genmodels.losses import discriminator_loss, generator_loss
from genmodels.model import (
    Batch,
    GenerativeModel,
    Noise,
    OptimizerConfig,
    Phase,
    Progress,
    Proof,
    ProofContext,
    StepOutput,
)
from genmodels.pictures import scatter

LEVEL = 1 / 127.5  # between two grey levels, of values in [-1, 1]
NUM_BINS, NUM_POINTS = 100, 200_000  # of a side of the histogram over [-1, 1]^2; generated points in it
PROOF_STEPS = 1000  # of the discriminator against the generator held still


class GANConfig(AdversarialConfig):
    """Settings of the GAN."""

    latent_dim: int = Field(100, ge=1, description="dimensions of z")
    generator_hidden: int = Field(1200, ge=1, description="units of each of the generator's hidden layers")
    discriminator_hidden: int = Field(1200, ge=1, description="units of each of the discriminator's hidden layers")
    num_hidden: int = Field(2, ge=1, description="hidden layers of both networks")
    discriminator_norm: Literal["spectral", "none"] = Field("none", description="normalisation in D")
    lr: float = Field(2e-4, gt=0, description="Adam's learning rate, both networks")
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's first decay rate")


class GAN(GenerativeModel):
    """Generator and discriminator, updated in turn; images of any size, taken as vectors."""

    Config = GANConfig
    phases = (Phase("discriminator", ("discriminator",)), Phase("generator", ("generator",)))
    ema_nets = ("generator",)
    proof_nets = ("discriminator",)

    def __init__(self, config: GANConfig, data: DataSpec):
        super().__init__(config, data)
        self.config: GANConfig = config
        if config.augment and data.image_size == 1:
            raise ValueError(f"augment of {self.name}: data set {data.name!r} has points, no images; choices: false")
        self.shape = (data.channels, data.image_size, data.image_size)
        size = math.prod(self.shape)
        self.generator = mlp(config.latent_dim, config.generator_hidden, size, config.num_hidden, nn.ReLU())
        self.discriminator = mlp(size, config.discriminator_hidden, 1, config.num_hidden, nn.LeakyReLU(0.2))
        normalise(config.discriminator_norm, self.discriminator)

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """The same Adam for both."""
        adam = OptimizerConfig(lr=self.config.lr, betas=(self.config.beta1, 0.999))
        return {"discriminator": adam, "generator": adam}

    def training_step(
        self, batch: Batch, phase: str, progress: Progress, noise: Noise, scratch: dict[str, Any]
    ) -> StepOutput:
        """The discriminator's or the generator's loss."""
        real = batch["image"]
        latents = 2 * noise.uniform(len(real), self.config.latent_dim) - 1
        if phase == "generator":
            fake = self.config.shown(self._images(latents), noise)
            return StepOutput({"adversarial": generator_loss(self.config.loss, self._judged(fake))})
        if self.data.image_size == 1:  # points of the plane have a density only between their levels
            real = real + LEVEL * (noise.uniform(*real.shape) - 0.5)
        with torch.no_grad():
            fake = self._images(latents)
        real, fake = self.config.shown(real, noise), self.config.shown(fake, noise)
        loss = discriminator_loss(self.config.loss, self._judged(real), self._judged(fake))
        penalty = self.config.penalised(self._judged, real, fake, noise)
        return StepOutput({"adversarial": loss, **penalty}, {"value": -loss})  # V(D, G)

    def _images(self, latents: Tensor) -> Tensor:
        return torch.tanh(self.generator(latents)).view(-1, *self.shape)

    def _judged(self, images: Tensor) -> Tensor:
        """D's logits, [B, 1]."""
        return self.discriminator(images.flatten(1))

    def latent(self, num: int, generator: torch.Generator) -> Tensor:
        """U(-1, 1), [num, Z]."""
        return 2 * torch.rand(num, self.config.latent_dim, generator=generator) - 1

    def generate(self, latent: Tensor, cond: Batch, progress: Progress) -> Tensor:
        """G(z)."""
        return self._images(latent)

    @torch.no_grad()
    def proofs(self, context: ProofContext) -> list[Proof]:
        """On points: modes, divergence and discriminator against the truth; on images: the distance in features."""
        if self.data.image_size == 1:
            return self._ring_proofs()
        return context.halved("fid")

    def _ring_proofs(self) -> list[Proof]:
        """A generator that knows the data's mean and covariance but no modes is the baseline."""
        device = next(self.generator.parameters()).device
        latents = self.latent(NUM_POINTS, torch.Generator().manual_seed(0)).to(device)
        points = torch.tanh(self.generator(latents))
        centres = bin_centres().to(points)
        p, q = probability(ring_log_density(centres)), histogram(points)
        variance = RADIUS**2 / 2 + SIGMA**2  # of the ring, in each direction
        divergence = js_divergence(p, q).item()
        gaussian = js_divergence(p, probability(-0.5 * centres.square().sum(1) / variance)).item()
        covered = covered_modes(points)
        return [
            Proof("modes of the ring covered: all", covered, NUM_MODES, covered == NUM_MODES, "modes"),
            Proof(
                "JSD to the ring below a quarter of a fitted Gaussian's",
                divergence,
                0.25 * gaussian,
                divergence < 0.25 * gaussian,
                "nats",
            ),
            *self._discriminator_proofs(points, p, q),
        ]

    def _discriminator_proofs(self, points: Tensor, p: Tensor, q: Tensor) -> list[Proof]:
        """D against D*, of the bins' probabilities p and q, once its inner maximisation is run to its end.

        In training D follows a generator that moves; here it goes on against the averaged one, held still. Left out
        where the generator is so good that D* is 1/2.
        """
        if js_divergence(p, q) < 0.01:
            return []
        discriminator = self._converged_discriminator(points)
        prediction = torch.sigmoid(discriminator(bin_centres().to(points)).squeeze(1))
        optimal, either = p / (p + q).clamp(min=1e-30), (p + q) / 2
        error, of_half = (float((either * (value - optimal).abs()).sum()) for value in (prediction, 0.5))
        real = ring_points(len(points), torch.Generator().manual_seed(2)).to(points)
        value = -discriminator_loss("minimax", discriminator(real), discriminator(points)).item()
        bound, floor = 2 * js_divergence(p, q).item() - math.log(4), -math.log(4)
        return [
            Proof("E|D - D*| below half of that of D = 1/2", error, of_half, error < 0.5 * of_half),
            Proof(
                "V(D, G) in the upper half between D = 1/2's -log 4 and its bound 2 JSD - log 4",
                value,
                bound,
                (floor + bound) / 2 < value <= bound + 0.02,
                "nats",
            ),
        ]

    def _converged_discriminator(self, points: Tensor) -> nn.Module:
        """The discriminator after PROOF_STEPS more steps between the ring and `points`; a copy."""
        generator = torch.Generator().manual_seed(1)
        discriminator = copy.deepcopy(self.discriminator).requires_grad_(True).train()
        optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, PROOF_STEPS)
        with torch.enable_grad():
            for _ in range(PROOF_STEPS):
                real = ring_points(512, generator).to(points)
                fake = points[torch.randint(len(points), (512,), generator=generator).to(points.device)]
                optimizer.zero_grad()
                discriminator_loss("minimax", discriminator(real), discriminator(fake)).backward()
                optimizer.step()
                schedule.step()
        return discriminator.requires_grad_(False).eval()

    @torch.no_grad()
    def pictures(self, context: ProofContext) -> dict[str, Tensor]:
        """Points: held-out ones beside generated ones."""
        if self.data.image_size != 1:
            return {}
        both = [scatter(points.flatten(1)) for points in (context.test["image"], context.samples)]
        return {"real_and_generated": torch.stack(both)[None]}


def mlp(num_inputs: int, hidden: int, num_outputs: int, num_hidden: int, activation: nn.Module) -> nn.Sequential:
    """Linear layers with an activation between each two, [B, num_inputs] -> [B, num_outputs]."""
    sizes = [num_inputs, *[hidden] * num_hidden]
    layers = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), activation)]
    return nn.Sequential(*layers, nn.Linear(hidden, num_outputs))


def bin_centres() -> Tensor:
    """Centres [NUM_BINS^2, 2] of the histogram's bins."""
    axis = (torch.arange(NUM_BINS) + 0.5) * (2 / NUM_BINS) - 1
    return torch.cartesian_prod(axis, axis)


def probability(log_density: Tensor) -> Tensor:
    """Densities at the bins' centres -> probabilities of the bins, which sum to 1."""
    return torch.softmax(log_density, 0)


def histogram(points: Tensor) -> Tensor:
    """Share of the points [N, 2] in each bin, [NUM_BINS^2]."""
    row, column = ((points.clamp(-1, 1) + 1) / 2 * NUM_BINS).long().clamp(max=NUM_BINS - 1).T
    return torch.bincount(row * NUM_BINS + column, minlength=NUM_BINS**2) / len(points)


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two distributions over the same bins, in nats, from 0 to log 2."""
    mean = ((p + q) / 2).clamp(min=1e-30)
    return (torch.xlogy(p, p / mean) + torch.xlogy(q, q / mean)).sum() / 2


def covered_modes(points: Tensor) -> int:
    """Modes of the ring with at least a quarter of their share of the points [N, 2] within three sigma."""
    distance, mode = torch.cdist(points, ring_centres().to(points)).min(1)
    share = torch.bincount(mode[distance < 3 * SIGMA], minlength=NUM_MODES) / len(points)
    return int((share >= 0.25 / NUM_MODES).sum())
