"""DCGAN (Radford et al. 2016): a generative adversarial network of strided convolutions.

    min_G max_D  E[log D(x)] + E[log(1 - D(G(z)))],   z ~ U(-1, 1)^Z

The generator's loss is the non-saturating -E[log D(G(z))]. WGAN-GP (Gulrajani et al. 2017), SNGAN (Miyato et
al. 2018) and R1 (Mescheder et al. 2018) are settings of this file: loss, penalty, norms, critic steps.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from genmodels.augment import diff_augment
from genmodels.convnets import Decoder, Encoder, Norm, init_dcgan
from genmodels.data.fields import DataSpec
from genmodels.losses import (
    AdversarialLoss,
    discriminator_loss,
    dragan_penalty,
    generator_loss,
    gradient_penalty,
    r1_penalty,
)
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
    Strict,
)


class DCGANConfig(Strict):
    """Settings of DCGAN; the defaults are the paper's, for 64x64 images."""

    latent_dim: int = Field(100, ge=1, description="dimensions of z")
    width: int = Field(128, ge=1, description="generator's channels at half the image size; doubled towards 4x4")
    discriminator_width: int = Field(64, ge=1, description="discriminator's channels at half the image size")
    loss: AdversarialLoss = Field("non_saturating", description="adversarial loss")
    penalty: Literal["none", "gp", "r1", "dragan"] = Field(
        "none", description="penalty on the discriminator's gradient"
    )
    penalty_weight: float = Field(10.0, ge=0, description="weight of the penalty")
    discriminator_norm: Literal["batch", "spectral", "none"] = Field("batch", description="normalisation in D")
    augment: bool = Field(False, description="DiffAugment on what the discriminator sees")
    discriminator_steps: int = Field(1, ge=1, description="discriminator updates a generator update")
    lr: float = Field(2e-4, gt=0, description="Adam's learning rate, both networks")
    discriminator_lr: float | None = Field(None, gt=0, description="the discriminator's own; null: the same")
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's first decay rate")

    @model_validator(mode="after")
    def _penalty_needs_images_one_by_one(self) -> DCGANConfig:
        if self.penalty in ("gp", "dragan") and self.discriminator_norm == "batch":
            raise ValueError(f"penalty {self.penalty!r} needs discriminator_norm 'none' or 'spectral', not 'batch'")
        return self


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
        norm: Norm = "batch" if config.discriminator_norm == "batch" else "none"
        self.generator = Generator(config.latent_dim, data.channels, data.image_size, config.width)
        self.discriminator = Encoder(data.channels, data.image_size, config.discriminator_width, 1, norm)
        self.apply(init_dcgan)
        if config.discriminator_norm == "spectral":
            self.discriminator.apply(_spectral)

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
        real, fake = self._augmented(real, noise), self._augmented(fake, noise)
        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake)
        losses = {"adversarial": discriminator_loss(self.config.loss, real_logits, fake_logits)}
        if self.config.penalty != "none":
            losses["penalty"] = self.config.penalty_weight * self._penalty(real, fake, noise)
        return StepOutput(losses, {"real_logit": real_logits.mean(), "fake_logit": fake_logits.mean()})

    def _generator_step(self, real: Tensor, noise: Noise) -> StepOutput:
        fake = self._augmented(self.generator(self._latents(len(real), noise)), noise)
        return StepOutput({"adversarial": generator_loss(self.config.loss, self.discriminator(fake))})

    def _penalty(self, real: Tensor, fake: Tensor, noise: Noise) -> Tensor:
        if self.config.penalty == "gp":
            return gradient_penalty(self.discriminator, real, fake, noise.uniform(len(real)))
        if self.config.penalty == "r1":
            return r1_penalty(self.discriminator, real)
        return dragan_penalty(self.discriminator, real, noise.uniform(*real.shape))

    def _augmented(self, images: Tensor, noise: Noise) -> Tensor:
        return diff_augment(images, noise) if self.config.augment else images

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


def _spectral(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        spectral_norm(module)
