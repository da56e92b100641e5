"""InfoGAN (Chen et al. 2016): a GAN whose generator must keep some of its inputs legible in the image.

    min_{G,Q} max_D  V(D, G) - lambda L_I(G, Q),   L_I = E[log Q(c | G(z, c))] + H(c) <= I(c; G(z, c))

The codes c, one categorical and some continuous, come to mean something without any label: the classes of the data,
a slant, a width. Q shares all of D but the last layers, and D's optimiser trains it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genmodels.adversarial import BatchNormConfig, normalise
from genmodels.convnets import Decoder, Encoder, Norm, init_dcgan
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
from genmodels.text import check_given


class InfoGANConfig(BatchNormConfig):
    """Settings of InfoGAN; the defaults are the paper's for MNIST (appendix C.1)."""

    num_categories: int = Field(10, ge=2, description="values of the categorical code")
    num_continuous: int = Field(2, ge=0, description="continuous codes, uniform on [-1, 1]")
    noise_dim: int = Field(62, ge=1, description="dimensions of the incompressible noise z")
    information_weight: float = Field(1.0, ge=0, description="lambda, weight of the information bound in both losses")
    width: int = Field(64, ge=1, description="channels at half the image size, both networks; doubled towards 4..7 px")
    hidden_dim: int = Field(1024, ge=1, description="units of the dense layer before G's and after D's convolutions")
    q_dim: int = Field(128, ge=1, description="units of Q's own layer")
    lr: float = Field(2e-4, gt=0, description="Adam's learning rate for the discriminator and Q")
    generator_lr: float = Field(1e-3, gt=0, description="Adam's learning rate for the generator")
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's first decay rate")


class Generator(nn.Module):
    """(z, c) [B, Z] -> images [B, C, S, S] in [-1, 1]."""

    def __init__(self, in_dim: int, config: InfoGANConfig, data: DataSpec):
        super().__init__()
        self.dense = nn.Sequential(_dense(in_dim, config.hidden_dim), nn.ReLU())
        self.decoder = Decoder(config.hidden_dim, data.channels, data.image_size, config.width)

    def forward(self, latents: Tensor) -> Tensor:
        """The tanh of the decoder's output."""
        return torch.tanh(self.decoder(self.dense(latents)))


class Discriminator(nn.Module):
    """D and Q on one trunk."""

    def __init__(self, config: InfoGANConfig, data: DataSpec):
        super().__init__()
        self.num_categories, hidden = config.num_categories, config.hidden_dim
        norm = config.encoder_norm
        encoder = Encoder(data.channels, data.image_size, config.width, hidden, norm)
        self.trunk = nn.Sequential(encoder, *_norm(hidden, norm), nn.LeakyReLU(0.1))
        self.head = nn.Linear(hidden, 1)
        num_parameters = config.num_categories + config.num_continuous  # of Q: logits and means
        hidden_q = _dense(hidden, config.q_dim, norm)
        self.q = nn.Sequential(hidden_q, nn.LeakyReLU(0.1), nn.Linear(config.q_dim, num_parameters))

    def forward(self, images: Tensor) -> Tensor:
        """D's logit, [B, 1]."""
        return self.head(self.trunk(images))

    def compare(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """D's logits of both and Q's parameters of the generated images, from one pass."""
        of_real, of_fake = self.trunk(torch.cat([real, fake.to(real.dtype)])).split(len(real))
        parameters = self.q(of_fake)
        codes = parameters[:, : self.num_categories], parameters[:, self.num_categories :]
        return self.head(of_real), self.head(of_fake), *codes

    def logit_and_code(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """D's logit [B, 1], and Q's logits [B, K] of the category and means [B, M] of the continuous codes."""
        features = self.trunk(images)
        parameters = self.q(features)
        return self.head(features), parameters[:, : self.num_categories], parameters[:, self.num_categories :]


def information(logits: Tensor, means: Tensor, category: Tensor, continuous: Tensor) -> tuple[Tensor, Tensor]:
    """L_I = E[log Q(c|x)] + H(c) in nats, of the categorical code and of the continuous ones together.

    logits [B, K] (no softmax before: cross-entropy has its own), category int64 [B]; means and continuous [B, M]
    under Q = N(mean, 1), sigma fixed, against H(U(-1, 1)) = ln 2 each.
    """
    of_category = math.log(logits.shape[1]) - F.cross_entropy(logits.float(), category)
    log_q = -0.5 * (continuous - means.float()).square() - 0.5 * math.log(2 * math.pi)
    return of_category, (log_q + math.log(2)).sum(1).mean()


class InfoGAN(GenerativeModel):
    """Generator, and discriminator with Q, updated in turn."""

    Config = InfoGANConfig
    phases = (Phase("discriminator", ("discriminator",)), Phase("generator", ("generator",)))
    ema_nets = ("generator",)
    least_share = 2  # batch norm of dense layers
    proof_nets = ("discriminator",)

    def __init__(self, config: InfoGANConfig, data: DataSpec):
        super().__init__(config, data)
        self.config: InfoGANConfig = config
        self.generator = Generator(config.noise_dim + config.num_categories + config.num_continuous, config, data)
        self.discriminator = Discriminator(config, data)
        self.apply(init_dcgan)
        # Not Q: a bound on its slope would bound what it can say of the codes.
        normalise(config.discriminator_norm, self.discriminator.trunk, self.discriminator.head)

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Adam; the generator's rate is five times the discriminator's."""
        betas = (self.config.beta1, 0.999)
        return {
            "discriminator": OptimizerConfig(lr=self.config.lr, betas=betas),
            "generator": OptimizerConfig(lr=self.config.generator_lr, betas=betas),
        }

    def training_step(
        self, batch: Batch, phase: str, progress: Progress, noise: Noise, scratch: dict[str, Any]
    ) -> StepOutput:
        """The adversarial loss of one side less lambda L_I; in the generator's phase L_I passes a frozen Q."""
        real = batch["image"]
        category = noise.integers(self.config.num_categories, len(real))
        rest = 2 * noise.uniform(len(real), self.config.noise_dim + self.config.num_continuous) - 1
        with torch.set_grad_enabled(phase == "generator"):
            fake = self.generator(self._join(rest, category))
        real, fake = self.config.shown(real, noise), self.config.shown(fake, noise)
        # Real and generated in one batch: batch norm over each apart would hide from D how their means differ.
        real_logit, fake_logit, logits, means = self.discriminator.compare(real, fake)
        of_category, of_continuous = information(logits, means, category, rest[:, self.config.noise_dim :])
        losses = {"information": -self.config.information_weight * (of_category + of_continuous)}
        if phase == "generator":
            losses["adversarial"] = generator_loss(self.config.loss, fake_logit)
        else:
            losses["adversarial"] = discriminator_loss(self.config.loss, real_logit, fake_logit)
            losses |= self.config.penalised(self.discriminator, real, fake, noise)
        return StepOutput(losses, {"category_nats": of_category, "continuous_nats": of_continuous})

    def _join(self, rest: Tensor, category: Tensor) -> Tensor:
        """The generator's input [B, Z]: noise, one-hot category, continuous codes; `rest` is the first and last."""
        noise, continuous = rest[:, : self.config.noise_dim], rest[:, self.config.noise_dim :]
        return torch.cat([noise, F.one_hot(category, self.config.num_categories).to(rest), continuous], 1)

    # Sampling

    def latent(self, num: int, generator: torch.Generator) -> Tensor:
        """Noise U(-1, 1), a uniform category as one-hot, codes U(-1, 1): [num, Z]."""
        rest = 2 * torch.rand(num, self.config.noise_dim + self.config.num_continuous, generator=generator) - 1
        return self._join(rest, torch.randint(self.config.num_categories, (num,), generator=generator))

    def controls(self) -> dict[str, tuple[str, ...]]:
        """The category."""
        return {"label": tuple(str(number) for number in range(self.config.num_categories))}

    def encode_condition(self, **given: Any) -> Batch:
        """label="3": the categorical code by its number; what it means, the pictures of the evidence show."""
        choices = self.controls()["label"]
        check_given(self.name, given, required=("label",))
        if given["label"] not in choices:
            raise ValueError(f"label {given['label']!r} of {self.name} is no category; choices: {', '.join(choices)}")
        return {"category": torch.tensor([int(given["label"])])}

    def generate(self, latent: Tensor, cond: Batch, progress: Progress) -> Tensor:
        """G(z, c), the category taken from `cond` where it states one."""
        if "category" in cond:
            start = self.config.noise_dim
            rest = torch.cat([latent[:, :start], latent[:, start + self.config.num_categories :]], 1)
            latent = self._join(rest, cond["category"])
        return self.generator(latent)

    def traversal(self, latent: Tensor, steps: int) -> Tensor:
        """A row a code, [1 + M, steps, Z]: the categories in turn; each continuous code from -1 to 1."""
        start, end = self.config.noise_dim, self.config.noise_dim + self.config.num_categories
        moved = latent.repeat(1 + self.config.num_continuous, steps, 1)
        moved[0, :, start:end] = F.one_hot(torch.arange(steps) % (end - start), end - start).to(latent)
        for code in range(self.config.num_continuous):
            moved[1 + code, :, end + code] = torch.linspace(-1, 1, steps)
        return moved

    # Evidence

    @torch.no_grad()
    def proofs(self, context: ProofContext) -> list[Proof]:
        """The information bound on fresh samples; how well Q's categories name the classes of held-out images."""
        num, config = 2048, self.config
        latents = self.latent(num, torch.Generator().manual_seed(0)).to(context.samples.device)
        _, category, continuous = latents.split([config.noise_dim, config.num_categories, config.num_continuous], 1)
        parts = [self.discriminator.logit_and_code(self.generator(part))[1:] for part in latents.split(256)]
        logits, means = (torch.cat(column) for column in zip(*parts, strict=True))
        bound = information(logits, means, category.argmax(1), continuous)[0].item()
        most = math.log(config.num_categories)
        claim = f"bound on I(category; image) of fresh samples above 0.9 of ln {config.num_categories} = {most:.3f}"
        proofs = [Proof(claim, bound, 0.9 * most, bound > 0.9 * most, "nats")]
        for code in range(config.num_continuous):
            explained = (
                1 - (continuous[:, code] - means[:, code]).square().mean().item() / continuous[:, code].var().item()
            )
            claim = f"Q recovers continuous code {code + 1}: more than half of its variance"
            proofs.append(Proof(claim, explained, 0.5, explained > 0.5, "R squared"))
        if "label" in context.test:
            right, share = self._class_accuracy(context), _largest_share(context.test["label"])
            bar = min(2 * share, (1 + share) / 2)
            claim = "category names the class of held-out images, matched one to one on training images"
            claim += "; above twice the largest class, or halfway from it to all"
            proofs.append(Proof(claim, right, bar, right > bar, "accuracy"))
        return proofs

    def _class_accuracy(self, context: ProofContext) -> float:
        """Accuracy of Q on held-out images; which category means which class is settled on the training images."""
        from scipy.optimize import linear_sum_assignment

        num_classes = int(max(context.train["label"].max(), context.test["label"].max())) + 1
        counts = torch.zeros(self.config.num_categories, num_classes, dtype=torch.int64)
        counts.index_put_(
            (self._categories(context.train["image"]), context.train["label"].cpu()), torch.tensor(1), True
        )
        means = torch.full((self.config.num_categories,), -1)  # a category beyond the classes names none
        categories, classes = linear_sum_assignment(counts.numpy(), maximize=True)
        means[torch.from_numpy(categories)] = torch.from_numpy(classes)
        named = means[self._categories(context.test["image"])]
        return (named == context.test["label"].cpu()).float().mean().item()

    def _categories(self, images: Tensor) -> Tensor:
        return torch.cat([self.discriminator.logit_and_code(part)[1].argmax(1) for part in images.split(256)]).cpu()

    @torch.no_grad()
    def pictures(self, context: ProofContext) -> dict[str, Tensor]:
        """A grid a code: rows of one noise each under every category; rows of one category each as a code moves."""
        device, config = context.samples.device, self.config
        start, end = config.noise_dim, config.noise_dim + config.num_categories
        base = self.latent(8, torch.Generator().manual_seed(0))
        every = torch.eye(config.num_categories)
        shown = {"category": base[:, None].repeat(1, config.num_categories, 1)}
        shown["category"][..., start:end] = every
        for code in range(config.num_continuous):
            moved = base[:1, None].repeat(config.num_categories, 10, 1)
            moved[..., start:end] = every[:, None]
            moved[..., end + code] = torch.linspace(-1, 1, 10)
            shown[f"continuous_{code + 1}"] = moved
        return {name: torch.stack([self.generator(row.to(device)) for row in rows]) for name, rows in shown.items()}


def _dense(in_dim: int, out_dim: int, norm: Norm = "batch") -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, out_dim, bias=norm == "none"), *_norm(out_dim, norm))


def _norm(dim: int, norm: Norm) -> list[nn.Module]:
    return [nn.BatchNorm1d(dim)] if norm == "batch" else []


def _largest_share(labels: Tensor) -> float:
    return labels.bincount().max().item() / len(labels)
