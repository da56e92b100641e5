"""Adversarial autoencoder (Makhzani et al. 2016): a discriminator makes the codes follow a prior of any form.

For every batch three updates, each with its own Adam:

    reconstruction    min_E,D  E |x - D(E(x))|^2
    discriminator     max_C    E[log C(z)] + E[log(1 - C(E(x)))],   z ~ p(z)
    regularisation    max_E    E[log C(E(x))]

With `use_labels` the discriminator sees the label too, and each class gets its own region of the prior (section 2.3).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from genmodels.convnets import Decoder, Encoder
from genmodels.data.fields import DataSpec
from genmodels.losses import discriminator_loss, generator_loss
from genmodels.metrics.two_sample import classifier_accuracy, squared_mmd
from genmodels.model import Batch, Noise, OptimizerConfig, Phase, Progress, Proof, ProofContext, StepOutput, Strict
from genmodels.pictures import INK, class_colours, scatter
from genmodels.priors import IN_PLACES, PRIORS, PriorName, mixture, place_of_class
from genmodels.reconstruction import ReconstructingModel
from genmodels.schedules import linear_decay
from genmodels.text import nearest

PROOF_STEPS, PROOF_BATCH = 300, 32  # of the plain autoencoder that the proofs compare with


class AAEConfig(Strict):
    """Settings of the adversarial autoencoder."""

    prior: PriorName = Field("gaussian", description="p(z)")
    latent_dim: int = Field(8, ge=1, description="dimensions of the code")
    use_labels: bool = Field(False, description="the latent discriminator is told the class")
    width: int = Field(32, ge=1, description="channels of the outermost convolution; doubled with every halving")
    hidden: int = Field(1000, ge=1, description="units of each of the latent discriminator's two hidden layers")
    lr: float = Field(1e-3, gt=0, description="Adam's learning rate for the reconstruction")
    adversarial_lr: float = Field(2e-4, gt=0, description="Adam's learning rate of the other two phases")
    decay_from: float = Field(0.5, ge=0, le=1, description="share of the training after which the rates fall to 0")

    @model_validator(mode="after")
    def _prior_needs_a_plane(self) -> AAEConfig:
        if self.prior in IN_PLACES and self.latent_dim < 2:
            raise ValueError(f"prior {self.prior!r} lies in a plane: latent_dim must be at least 2")
        if self.use_labels and self.prior not in IN_PLACES:
            choices = ", ".join(IN_PLACES)
            raise ValueError(f"use_labels: prior {self.prior!r} has no region for each class; choices: {choices}")
        return self


class AAE(ReconstructingModel):
    """Encoder, decoder, and the discriminator of codes."""

    Config = AAEConfig
    phases = (
        Phase("reconstruction", ("encoder", "decoder")),
        Phase("discriminator", ("discriminator",)),
        Phase("regularisation", ("encoder",)),
    )
    ema_nets = ("encoder", "decoder")
    least_share = 2  # batch norm of the codes

    def __init__(self, config: AAEConfig, data: DataSpec):
        super().__init__(config, data)
        self.config: AAEConfig = config
        if config.use_labels and not data.classes:
            raise ValueError(f"use_labels: data set {data.name!r} has no classes")
        self.batch_keys = ("image", "label") if config.use_labels else ("image",)
        # The batch norm, not in the paper, spreads the codes from the start: the discriminator need only shape them.
        encoder = Encoder(data.channels, data.image_size, config.width, config.latent_dim, norm="none")
        self.encoder = nn.Sequential(encoder, nn.BatchNorm1d(config.latent_dim))
        self.decoder = Decoder(config.latent_dim, data.channels, data.image_size, config.width)
        num_inputs = config.latent_dim + (len(data.classes) if config.use_labels else 0)
        self.discriminator = latent_discriminator(num_inputs, config.hidden)

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Adam, slower in the adversarial phases."""
        adversarial = OptimizerConfig(lr=self.config.adversarial_lr, betas=(0.5, 0.999))
        return {
            "reconstruction": OptimizerConfig(lr=self.config.lr, betas=(0.9, 0.999)),
            "discriminator": adversarial,
            "regularisation": adversarial,
        }

    def lr_scale(self, phase: Phase, progress: Progress) -> float:
        """Constant, then linear to 0: the two adversaries come to rest."""
        return linear_decay(progress.fraction, self.config.decay_from)

    def training_step(
        self, batch: Batch, phase: str, progress: Progress, noise: Noise, scratch: dict[str, Any]
    ) -> StepOutput:
        """The loss of one of the three phases."""
        images = batch["image"]
        if phase == "reconstruction":
            codes = self.encoder(images)
            scratch["codes"] = codes.detach()
            return StepOutput({"mse": F.mse_loss(torch.tanh(self.decoder(codes)).float(), images)})
        if phase == "discriminator":
            normal, place = noise.normal(len(images), self.config.latent_dim), noise.uniform(len(images))
            prior = self.discriminator(self._labelled(self.prior(normal, place, batch), batch))
            fake = self.discriminator(self._labelled(scratch["codes"], batch))
            accuracy = ((prior > 0).float().mean() + (fake < 0).float().mean()) / 2
            return StepOutput({"adversarial": discriminator_loss("minimax", prior, fake)}, {"accuracy": accuracy})
        fake = self.discriminator(self._labelled(self.encoder(images), batch))
        return StepOutput({"adversarial": generator_loss("non_saturating", fake)})

    def prior(self, normal: Tensor, place: Tensor, batch: Batch) -> Tensor:
        """Draws of p(z), or of p(z|label) where the batch has labels and the model uses them, [N, Z]."""
        if self.config.use_labels and "label" in batch:
            place = place_of_class(place, batch["label"], len(self.data.classes))
        if self.config.use_labels and self.config.prior == "mixture":
            return mixture(normal, place, len(self.data.classes))  # a mode a class
        return PRIORS[self.config.prior](normal, place)

    def _labelled(self, codes: Tensor, batch: Batch) -> Tensor:
        """Codes, with the one-hot label beside them where labels are used."""
        if not self.config.use_labels:
            return codes
        return torch.cat([codes, F.one_hot(batch["label"], len(self.data.classes)).to(codes.dtype)], 1)

    def latent(self, num: int, generator: torch.Generator) -> Tensor:
        """N(0, 1), [num, Z + 1], that `decode` takes to the prior; the last one becomes the place."""
        return torch.randn(num, self.config.latent_dim + 1, generator=generator)

    def decode(self, latent: Tensor, cond: Batch) -> Tensor:
        """Images of codes of the prior."""
        place = torch.special.ndtr(latent[:, -1])
        return torch.tanh(self.decoder(self.prior(latent[:, :-1], place, cond)))

    def reconstruct(self, images: Tensor) -> Tensor:
        """D(E(x))."""
        return torch.tanh(self.decoder(self.encoder(images)))

    def controls(self) -> dict[str, tuple[str, ...]]:
        """Images to reconstruct; a class, where labels are used."""
        return super().controls() | ({"label": self.data.classes} if self.config.use_labels else {})

    def encode_condition(self, **given: Any) -> Batch:
        """source: images to reconstruct; or, where labels are used, label: the name of a class to sample."""
        if "label" not in given or not self.config.use_labels or len(given) > 1:
            return super().encode_condition(**given)
        label, classes = given["label"], self.data.classes
        if label not in classes:
            raise ValueError(f"unknown class {label!r}{nearest(label, classes)}; choices: {', '.join(classes)}")
        return {"label": torch.tensor([classes.index(label)])}

    @torch.no_grad()
    def proofs(self, context: ProofContext) -> list[Proof]:
        """Held-out codes against the prior, and how far a plain autoencoder's are from it, brought to its moments."""
        generator = torch.Generator().manual_seed(0)
        train, test = (_part(batch, 2048) for batch in (context.train, context.test))
        plain = self._plain_encoder(context.train["image"])
        mmd, accuracy = [], []
        for encoder, fit in ((self.encoder, False), (plain, True)):
            train_codes, test_codes = (_encoded(encoder, batch["image"]) for batch in (train, test))
            prior_train, prior_test = (self._prior_draws(batch, generator) for batch in (train, test))
            if fit:
                mean, std = train_codes.mean(0), train_codes.std(0)
                target_mean, target_std = prior_train.mean(0), prior_train.std(0)
                train_codes, test_codes = (
                    (codes - mean) / std * target_std + target_mean for codes in (train_codes, test_codes)
                )
            real, fake = self._labelled(prior_test, test), self._labelled(test_codes, test)
            mmd.append(squared_mmd(real, fake))
            pair = self._labelled(prior_train, train), self._labelled(train_codes, train)
            accuracy.append(classifier_accuracy(pair, (real, fake)))
        return [
            Proof(
                "squared MMD of held-out codes to the prior below a tenth of a plain autoencoder's",
                mmd[0],
                mmd[1],
                mmd[0] < 0.1 * mmd[1],
            ),
            Proof(
                "a fresh classifier tells held-out codes from the prior at most 60% of the time, unlike a plain one's",
                accuracy[0],
                accuracy[1],
                accuracy[0] <= 0.6 < accuracy[1],
                "accuracy",
            ),
        ]

    def _prior_draws(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """As many draws of the prior as the batch has images, of their classes where labels are used."""
        images = batch["image"]
        normal = torch.randn(len(images), self.config.latent_dim, generator=generator)
        place = torch.rand(len(images), generator=generator)
        return self.prior(normal.to(images), place.to(images), batch)

    def _plain_encoder(self, images: Tensor) -> nn.Module:
        """An encoder like this model's, trained for reconstruction alone; the same for the same images."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.default_generator.manual_seed(0)
            plain = AAE(self.config, self.data).to(images.device)
            optimizer = torch.optim.Adam([*plain.encoder.parameters(), *plain.decoder.parameters()], self.config.lr)
            for _ in range(PROOF_STEPS):
                batch = images[torch.randint(len(images), (PROOF_BATCH,))]
                optimizer.zero_grad()
                F.mse_loss(plain.reconstruct(batch), batch).backward()
                optimizer.step()
        return plain.encoder.eval()

    @torch.no_grad()
    def pictures(self, context: ProofContext) -> dict[str, Tensor]:
        """Besides reconstructions, the first two dimensions: codes coloured by class, and draws of the prior."""
        pictures = super().pictures(context)
        if self.config.latent_dim < 2:
            return pictures
        batch = _part(context.train, 2048)
        codes = _encoded(self.encoder, batch["image"])
        draws = self._prior_draws(batch, torch.Generator().manual_seed(0))
        colours = class_colours(batch["label"], len(self.data.classes)) if "label" in batch else INK
        limit = 1.1 * float(draws[:, :2].abs().max())
        of_prior = scatter(draws[:, :2], colours if self.config.use_labels else INK, limit)
        return pictures | {"codes_and_prior": torch.stack([scatter(codes[:, :2], colours, limit), of_prior])[None]}


def latent_discriminator(num_inputs: int, hidden: int) -> nn.Sequential:
    """Codes [B, num_inputs] -> logits [B, 1]; two hidden layers (Makhzani et al. 2016, appendix A)."""
    return nn.Sequential(
        nn.Linear(num_inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
    )


def _part(batch: Batch, num: int) -> Batch:
    """The first samples of a batch, images and labels."""
    return {key: batch[key][:num] for key in ("image", "label") if key in batch}


def _encoded(encoder: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([encoder(part) for part in images.split(256)])
