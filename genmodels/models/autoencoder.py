"""Autoencoder (Hinton & Salakhutdinov 2006): the best reconstruction through a narrow code.

    minimise  E |x - D(E(x))|^2

Nothing gives its codes a distribution to draw from. It samples all the same, from the Gaussian that has its codes'
mean and covariance; the score of those samples beside the VAE's says how much of a generative model it is.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from genmodels.convnets import Decoder, Encoder
from genmodels.data.fields import DataSpec
from genmodels.model import Batch, Noise, OptimizerConfig, Phase, Progress, Proof, ProofContext, StepOutput, Strict
from genmodels.reconstruction import ReconstructingModel

MOMENTUM = 0.01  # of the codes' running moments: the last few hundred batches count


class AutoencoderConfig(Strict):
    """Settings of the autoencoder."""

    latent_dim: int = Field(64, ge=1, description="dimensions of the code")
    width: int = Field(32, ge=1, description="channels of the outermost convolution; doubled with every halving")
    loss: Literal["mse", "bce"] = Field("mse", description="mse: on [-1, 1]; bce: cross-entropy on [0, 1]")
    lr: float = Field(1e-3, gt=0, description="Adam's learning rate")


class CodeEncoder(Encoder):
    """Images [B, C, S, S] -> codes [B, Z]; in training it notes the first two moments of its codes.

    Raw moments, so that their averages over ranks are those of the whole batch.
    """

    first: Tensor
    second: Tensor
    axes: Tensor  # [Z, Z], the shortest first

    def __init__(self, channels: int, image_size: int, width: int, latent_dim: int):
        super().__init__(channels, image_size, width, latent_dim)
        self.register_buffer("first", torch.zeros(latent_dim))  # E[z]
        self.register_buffer("second", torch.eye(latent_dim))  # E[z z^T]

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, Z]."""
        codes = super().forward(images)
        if self.training:
            with torch.autocast(codes.device.type, enabled=False):
                noted = codes.detach().float()
                self.first.lerp_(noted.mean(0), MOMENTUM)
                self.second.lerp_(noted.T @ noted / len(noted), MOMENTUM)
        return codes

    def train(self, mode: bool = True) -> CodeEncoder:
        """Towards sampling, the moments become the axes of the Gaussian that `draw` draws from."""
        super().train(mode)
        if not mode and not self.first.is_meta:  # which has no values
            first, second = self.first.double().cpu(), self.second.double().cpu()  # a GPU's axes have other signs
            variances, axes = torch.linalg.eigh(second - torch.outer(first, first))
            scaled = variances.clamp(min=0).sqrt()[:, None] * axes.T  # running moments may give slightly below 0
            self.axes = scaled.to(self.first.device)
        return self

    def draw(self, normal: Tensor) -> Tensor:
        """Draws [N, Z] of N(0, I) -> codes of the fitted Gaussian, coordinate 0 along its longest axis."""
        return (self.first.double() + normal.flip(1).double() @ self.axes).to(normal.dtype)


class Autoencoder(ReconstructingModel):
    """Encoder, decoder, and the Gaussian of the codes."""

    Config = AutoencoderConfig
    phases = (Phase("reconstruction", ("encoder", "decoder")),)
    ema_nets = ("encoder", "decoder")

    def __init__(self, config: AutoencoderConfig, data: DataSpec):
        super().__init__(config, data)
        self.config: AutoencoderConfig = config
        self.encoder = CodeEncoder(data.channels, data.image_size, config.width, config.latent_dim)
        self.decoder = Decoder(config.latent_dim, data.channels, data.image_size, config.width)

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Adam at its usual moments."""
        return {"reconstruction": OptimizerConfig(lr=self.config.lr, betas=(0.9, 0.999))}

    def training_step(
        self, batch: Batch, phase: str, progress: Progress, noise: Noise, scratch: dict[str, Any]
    ) -> StepOutput:
        """The reconstruction error, a mean over pixels."""
        images = batch["image"]
        output = self.decoder(self.encoder(images)).float()
        if self.config.loss == "bce":
            return StepOutput({"bce": F.binary_cross_entropy_with_logits(output, (images + 1) / 2)})
        return StepOutput({"mse": F.mse_loss(torch.tanh(output), images)})

    def latent(self, num: int, generator: torch.Generator) -> Tensor:
        """N(0, I), [num, Z], along the principal axes of the codes."""
        return torch.randn(num, self.config.latent_dim, generator=generator)

    def decode(self, latent: Tensor, cond: Batch) -> Tensor:
        """Images of the codes that the latents stand for."""
        return self._images(self.encoder.draw(latent))

    def reconstruct(self, images: Tensor) -> Tensor:
        """D(E(x))."""
        return self._images(self.encoder(images))

    def _images(self, codes: Tensor) -> Tensor:
        output = self.decoder(codes)
        return torch.tanh(output) if self.config.loss == "mse" else 2 * torch.sigmoid(output) - 1

    @torch.no_grad()
    def proofs(self, context: ProofContext) -> list[Proof]:
        """Reconstruction against PCA's; samples against the untrained network's."""
        images = context.test["image"]
        error = torch.cat([self.reconstruct(part) - part for part in images.split(256)]).square().mean().item()
        baseline = pca_mse(context.train["image"], images, self.config.latent_dim)
        proofs = [
            Proof(
                f"held-out MSE below that of PCA with {self.config.latent_dim} components",
                error,
                baseline,
                error < baseline,
            )
        ]
        return proofs + context.halved("swd")


def pca_mse(train: Tensor, test: Tensor, num_components: int) -> float:
    """Mean squared error on `test` of PCA fitted to `train`, images [N, C, S, S]; clipped to [-1, 1]."""
    train, test = train.flatten(1), test.flatten(1)
    mean = train.mean(0)
    rank = min(num_components + 16, *train.shape)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        axes = torch.svd_lowrank(train - mean, q=rank, niter=8)[2][:, :num_components]  # [D, Z], Halko et al. 2011
    projected = (mean + (test - mean) @ axes @ axes.T).clamp(-1, 1)
    return (projected - test).square().mean().item()
