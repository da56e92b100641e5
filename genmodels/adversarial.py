"""The switches that adversarial models share: loss, penalty, the discriminator's normalisation, augmentation.

WGAN-GP (Gulrajani et al. 2017), SNGAN (Miyato et al. 2018) and R1 (Mescheder et al. 2018) are settings of them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from genmodels.augment import diff_augment
from genmodels.convnets import Norm
from genmodels.losses import AdversarialLoss, Critic, dragan_penalty, gradient_penalty, r1_penalty
from genmodels.model import Noise, Strict

Penalty = Literal["none", "gp", "r1", "dragan"]


class AdversarialConfig(Strict):
    """The switches of every adversarial model; one that offers norms for its discriminator adds the choice of them."""

    loss: AdversarialLoss = Field("non_saturating", description="adversarial loss")
    penalty: Penalty = Field("none", description="penalty on the discriminator's gradient")
    penalty_weight: float = Field(10.0, ge=0, description="weight of the penalty")
    augment: bool = Field(False, description="DiffAugment on what the discriminator sees")

    def shown(self, images: Tensor, noise: Noise) -> Tensor:
        """What the discriminator sees of images [B, C, H, W], real or generated."""
        return diff_augment(images, noise) if self.augment else images

    def penalised(
        self, critic: Critic, real: Tensor, fake: Tensor, noise: Noise, target: float = 1.0
    ) -> dict[str, Tensor]:
        """The weighted penalty as a loss by name; none without a penalty. target: the norm that 'gp' asks for."""
        if self.penalty == "none":
            return {}
        if self.penalty == "gp":
            penalty = gradient_penalty(critic, real, fake, noise.uniform(len(real)), target)
        elif self.penalty == "r1":
            penalty = r1_penalty(critic, real)
        else:
            penalty = dragan_penalty(critic, real, noise.uniform(*real.shape))
        return {"penalty": self.penalty_weight * penalty}


class BatchNormConfig(AdversarialConfig):
    """The switches of a model whose discriminator has batch normalisation in its paper."""

    discriminator_norm: Literal["batch", "spectral", "none"] = Field("batch", description="normalisation in D")

    @property
    def encoder_norm(self) -> Norm:
        """What the discriminator is built with, before `normalise`."""
        return "batch" if self.discriminator_norm == "batch" else "none"

    @model_validator(mode="after")
    def _penalty_needs_images_one_by_one(self) -> BatchNormConfig:
        if self.penalty in ("gp", "dragan") and self.discriminator_norm == "batch":
            raise ValueError(f"penalty {self.penalty!r} needs discriminator_norm 'none' or 'spectral', not 'batch'")
        return self


def normalise(norm: str, *nets: nn.Module) -> None:
    """Where `norm` is 'spectral', divides the weight of each layer by its largest singular value, in every pass.

    Miyato et al. 2018, with one power iteration a pass. Comes after the weights were drawn.
    """
    if norm == "spectral":
        for net in nets:
            net.apply(_spectral)


def _spectral(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        spectral_norm(module)
