"""DCGAN (Radford et al. 2016): a generative adversarial network of strided convolutions.

    min_G max_D  E[log D(x)] + E[log(1 - D(G(z)))],   z ~ U(-1, 1)^Z

The generator's loss is the non-saturating -E[log D(G(z))].
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from genmodels.adversarial import BatchNormConfig, normalise
from genmodels.convnets import Decoder, Encoder, init_dcgan
from genmodels.data.fields import DataSpec
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


class DCGANConfig(BatchNormConfig):
    """Settings of DCGAN; the defaults are the paper's, for 64x64 images."""

    latent_dim: int = Field(100, ge=1, description="dimensions of z")
    width: int = Field(128, ge=1, description="generator's channels at half the image size; doubled towards 4x4")
    discriminator_width: int = Field(64, ge=1, description="discriminator's channels at half the image size")
    discriminator_steps: int = Field(1, ge=1, description="discriminator updates a generator update")
    lr: float = Field(2e-4, gt=0, description="Adam's learning rate, both networks")
    discriminator_lr: float | None = Field(None, gt=0, description="the discriminator's own; null: the same")
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's first decay rate")


class Generator(Decoder):
    """z [B, Z] -> images [B, C, S, S] in [-1, 1]."""

    def forward(self, latents: Tensor) -> Tensor:
        """The tanh of the decoder's output."""
        return torch.tanh(super().forward(latents))


class DCGAN(GenerativeModel):
    """Generator and discriminator, updated in turn."""

    Config = DCGANConfig
    ema_nets = ("generator",)
    proof_nets = ("discriminator",)

    def __init__(self, config: DCGANConfig, data: DataSpec):
        super().__init__(config, data)
        self.config: DCGANConfig = config
        self.phases = (
            Phase("discriminator", ("discriminator",)),
            Phase("generator", ("generator",), every=config.discriminator_steps),
        )
        self.generator = Generator(config.latent_dim, data.channels, data.image_size, config.width)
        self.discriminator = Encoder(data.channels, data.image_size, config.discriminator_width, 1, config.encoder_norm)
        self.apply(init_dcgan)
        normalise(config.discriminator_norm, self.discriminator)

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Adam with beta1 0.5 for both."""
        betas = (self.config.beta1, 0.999)
        return {
            "discriminator": OptimizerConfig(lr=self.config.discriminator_lr or self.config.lr, betas=betas),
            "generator": OptimizerConfig(lr=self.config.lr, betas=betas),
        }

    def training_step(
        self, batch: Batch, phase: str, progress: Progress, noise: Noise, scratch: dict[str, Any]
    ) -> StepOutput:
        """The discriminator's or the generator's loss."""
        step = self._discriminator_step if phase == "discriminator" else self._generator_step
        return step(batch["image"], noise)

    def _discriminator_step(self, real: Tensor, noise: Noise) -> StepOutput:
        with torch.no_grad():
            fake = self.generator(self._latents(len(real), noise))
        real, fake = self.config.shown(real, noise), self.config.shown(fake, noise)
        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake)
        losses = {"adversarial": discriminator_loss(self.config.loss, real_logits, fake_logits)}
        losses |= self.config.penalised(self.discriminator, real, fake, noise)
        return StepOutput(losses, {"real_logit": real_logits.mean(), "fake_logit": fake_logits.mean()})

    def _generator_step(self, real: Tensor, noise: Noise) -> StepOutput:
        fake = self.config.shown(self.generator(self._latents(len(real), noise)), noise)
        return StepOutput({"adversarial": generator_loss(self.config.loss, self.discriminator(fake))})

    def _latents(self, num: int, noise: Noise) -> Tensor:
        return 2 * noise.uniform(num, self.config.latent_dim) - 1

    def latent(self, num: int, generator: torch.Generator) -> Tensor:
        """U(-1, 1), [num, Z]."""
        return 2 * torch.rand(num, self.config.latent_dim, generator=generator) - 1

    def generate(self, latent: Tensor, cond: Batch, progress: Progress) -> Tensor:
        """G(z)."""
        return self.generator(latent)

    @torch.no_grad()
    def proofs(self, context: ProofContext) -> list[Proof]:
        """Distance against the untrained generator's; a linear probe on D's features against one on pixels."""
        proofs = context.halved("fid", "swd")
        if "label" in context.train:
            probed = self._probe_accuracy(context, lambda images: self.discriminator.features(images))
            pixels = self._probe_accuracy(context, lambda images: images.flatten(1))
            proofs.append(
                Proof("linear probe on D's features beats pixels", probed, pixels, probed > pixels, "accuracy")
            )
        return proofs

    def _probe_accuracy(self, context: ProofContext, features: Any) -> float:
        """Held-out accuracy of a ridge classifier, its strength chosen on a fifth of the training images."""
        train = torch.cat([features(part) for part in context.train["image"].split(256)])
        test = torch.cat([features(part) for part in context.test["image"].split(256)])
        return ridge_accuracy(train, context.train["label"], test, context.test["label"])


def ridge_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Accuracy on test of ridge regression to one-hot labels from standardised features [N, F]."""
    mean, std = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    cut = len(train) * 4 // 5
    strengths = [1e1, 1e2, 1e3, 1e4, 1e5]
    best = max(strengths, key=lambda s: _ridge(train[:cut], train_labels[:cut], train[cut:], train_labels[cut:], s))
    return _ridge(train, train_labels, test, test_labels, best)


def _ridge(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, strength: float) -> float:
    """In the dual form, since features outnumber images."""
    targets = torch.nn.functional.one_hot(train_labels).float()
    kernel = train @ train.T + strength * torch.eye(len(train), device=train.device)
    weights = train.T @ torch.linalg.solve(kernel, targets - targets.mean(0))
    predicted = (test @ weights + targets.mean(0)).argmax(1)
    return (predicted == test_labels).float().mean().item()
