"""Variational auto-encoder (Kingma & Welling 2014): a decoder trained through an approximate posterior.

    maximise  E_q[log p(x|z)] - beta KL(q(z|x) || N(0, I)),   q(z|x) = N(mu(x), sigma(x)^2)

Both terms in nats an image, the reconstruction summed over pixels. beta > 1 is the beta-VAE (Higgins et al.
2017); iw_samples > 1 maximises the importance-weighted bound instead (Burda et al. 2016).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from genmodels.convnets import Decoder, Encoder
from genmodels.data.fields import DataSpec
from genmodels.losses import gaussian_kl
from genmodels.model import (
    Batch,
    Noise,
    OptimizerConfig,
    Phase,
    Progress,
    Proof,
    ProofContext,
    StepOutput,
    Strict,
)
from genmodels.reconstruction import ReconstructingModel

LOG_2PI = math.log(2 * math.pi)


class VAEConfig(Strict):
    """Settings of the VAE."""

    latent_dim: int = Field(64, ge=1, description="dimensions of z")
    width: int = Field(32, ge=1, description="channels of the outermost convolution; doubled with every halving")
    beta: float = Field(1.0, ge=0, description="weight of the KL term")
    likelihood: Literal["gaussian", "bernoulli"] = Field("gaussian", description="p(x|z)")
    sigma: float | None = Field(None, gt=0, description="of the Gaussian likelihood, on [-1, 1]; null: learned")
    iw_samples: int = Field(1, ge=1, description="samples of the importance-weighted bound; 1: the ELBO")
    lr: float = Field(1e-3, gt=0, description="Adam's learning rate")

    @model_validator(mode="after")
    def _beta_weighs_the_elbo(self) -> VAEConfig:
        if self.iw_samples > 1 and self.beta != 1:
            raise ValueError(
                f"beta {self.beta:g} has no effect with iw_samples {self.iw_samples}, which has no KL term"
            )
        return self


class ImageLikelihood(nn.Module):
    """Decoder and the distribution p(x|z) that it parametrises."""

    def __init__(self, config: VAEConfig, data: DataSpec):
        super().__init__()
        self.kind = config.likelihood
        self.decoder = Decoder(config.latent_dim, data.channels, data.image_size, config.width)
        log_sigma = torch.tensor(math.log(config.sigma or 0.3))
        if config.sigma is None and self.kind == "gaussian":
            self.log_sigma = nn.Parameter(log_sigma)  # one for all pixels (Rybkin et al. 2021)
        else:
            self.register_buffer("log_sigma", log_sigma)

    def mean(self, latents: Tensor) -> Tensor:
        """E[x|z] in [-1, 1], [B, C, H, W]."""
        logits = self.decoder(latents)
        return torch.tanh(logits) if self.kind == "gaussian" else 2 * torch.sigmoid(logits) - 1

    def log_prob(self, images: Tensor, latents: Tensor) -> Tensor:
        """Log p(x|z) in nats, summed over pixels, [B]. Bernoulli: of images scaled to [0, 1]."""
        if self.kind == "bernoulli":
            logits = self.decoder(latents).float()
            return -F.binary_cross_entropy_with_logits(logits, (images + 1) / 2, reduction="none").flatten(1).sum(1)
        squares = (images - self.mean(latents).float()).square().flatten(1).sum(1)
        return -0.5 * squares * torch.exp(-2 * self.log_sigma) - images[0].numel() * (self.log_sigma + 0.5 * LOG_2PI)


class VAE(ReconstructingModel):
    """Encoder, decoder, and the evidence lower bound."""

    Config = VAEConfig
    phases = (Phase("elbo", ("encoder", "decoder")),)
    ema_nets = ("encoder", "decoder")

    def __init__(self, config: VAEConfig, data: DataSpec):
        super().__init__(config, data)
        self.config: VAEConfig = config
        self.encoder = Encoder(data.channels, data.image_size, config.width, 2 * config.latent_dim)
        self.decoder = ImageLikelihood(config, data)

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Adam at its usual moments."""
        return {"elbo": OptimizerConfig(lr=self.config.lr, betas=(0.9, 0.999))}

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), [B, Z] each, fp32."""
        mean, logvar = self.encoder(images).float().chunk(2, 1)
        return mean, logvar.clamp(-20, 10)

    def training_step(
        self, batch: Batch, phase: str, progress: Progress, noise: Noise, scratch: dict[str, Any]
    ) -> StepOutput:
        """The negative ELBO, or the negative importance-weighted bound."""
        images = batch["image"]
        mean, logvar = self.posterior(images)
        if self.config.iw_samples > 1:
            draws = noise.normal(len(images), self.config.iw_samples, self.config.latent_dim)
            bound = self.importance_weighted_bound(images, mean, logvar, draws)
            return StepOutput({"iw_bound": -bound.mean()}, {"kl": gaussian_kl(mean, logvar)})
        latents = mean + torch.exp(0.5 * logvar) * noise.normal(*mean.shape)
        reconstruction = -self.decoder.log_prob(images, latents).mean()
        kl = gaussian_kl(mean, logvar)
        return StepOutput(
            {"reconstruction": reconstruction, "kl": self.config.beta * kl}, {"elbo": -reconstruction - kl}
        )

    def importance_weighted_bound(self, images: Tensor, mean: Tensor, logvar: Tensor, draws: Tensor) -> Tensor:
        """The bound log 1/K sum_k p(x, z_k) / q(z_k|x) in nats, [B], for draws [B, K, Z] of N(0, 1).

        Burda et al. 2016, equation 8.
        """
        num_images, k, _ = draws.shape
        latents = mean[:, None] + torch.exp(0.5 * logvar)[:, None] * draws
        log_prior = -0.5 * latents.square().sum(2)
        log_posterior = -0.5 * (draws.square() + logvar[:, None]).sum(2)  # the 2 pi terms of both cancel
        repeated = images.repeat_interleave(k, 0)
        log_likelihood = self.decoder.log_prob(repeated, latents.flatten(0, 1)).view(num_images, k)
        return torch.logsumexp(log_likelihood + log_prior - log_posterior, 1) - math.log(k)

    def latent(self, num: int, generator: torch.Generator) -> Tensor:
        """N(0, I), [num, Z]."""
        return torch.randn(num, self.config.latent_dim, generator=generator)

    def decode(self, latent: Tensor, cond: Batch) -> Tensor:
        """The mean of p(x|z)."""
        return self.decoder.mean(latent)

    def reconstruct(self, images: Tensor) -> Tensor:
        """The mean of p(x|z) at the mean of q(z|x)."""
        return self.decoder.mean(self.posterior(images)[0])

    @torch.no_grad()
    def proofs(self, context: ProofContext) -> list[Proof]:
        """Held-out likelihood, the share of latents in use, and samples against the untrained network's."""
        images = context.test["image"][:64]
        mean, logvar = self.posterior(images)
        nll = -self._log_evidence(images, mean, logvar).mean().item()
        baseline = self._independent_pixels_nll(context.train["image"], images)
        active = int((mean.var(0) > 0.01).sum())  # Burda et al. 2016, section 5.2
        proofs = [
            Proof("importance-weighted NLL (K = 200) below independent pixels'", nll, baseline, nll < baseline, "nats"),
            Proof("active latent units: at least a tenth", active, 0.1 * mean.shape[1], active >= 0.1 * mean.shape[1]),
        ]
        return proofs + context.halved("swd")

    def _log_evidence(self, images: Tensor, mean: Tensor, logvar: Tensor, k: int = 200) -> Tensor:
        """Estimate of log p(x), [B], eight images at a time."""
        generator = torch.Generator(images.device).manual_seed(0)
        bounds = []
        for x, m, v in zip(images.split(8), mean.split(8), logvar.split(8), strict=True):
            draws = torch.randn(len(x), k, m.shape[1], generator=generator, device=images.device)
            bounds.append(self.importance_weighted_bound(x, m, v, draws))
        return torch.cat(bounds)

    def _independent_pixels_nll(self, train: Tensor, test: Tensor) -> float:
        """-log p(x) of the best model without latents: every pixel on its own, fitted to the training images.

        No variance is below the decoder's, or constant pixels alone would decide.
        """
        mean = train.mean(0)
        if self.config.likelihood == "bernoulli":
            probability = ((mean + 1) / 2).clamp(1e-3, 1 - 1e-3).expand_as(test)
            return F.binary_cross_entropy(probability, (test + 1) / 2, reduction="none").flatten(1).sum(1).mean().item()
        variance = train.var(0).clamp(min=torch.exp(2 * self.decoder.log_sigma).item())
        nll = 0.5 * ((test - mean).square() / variance + variance.log() + LOG_2PI)
        return nll.flatten(1).sum(1).mean().item()
