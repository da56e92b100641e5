"""StarGAN (Choi et al. 2018): one generator for all translations between attributes.

G takes an image and target attributes c; D scores patches and names attributes. Wasserstein with penalty:

    min_D  E[D(G(x, c))] - E[D(x)] + 10 E[(|grad D| - 1)^2] + w_cls BCE(D_cls(x), own)
    min_G  -E[D(G(x, c))] + w_cls BCE(D_cls(G(x, c)), c) + w_rec |G(G(x, c), own) - x|_1

c are the batch's own labels in another order, so targets are as likely as real labels are.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from genmodels.adversarial import AdversarialConfig, Penalty, normalise
from genmodels.convnets import ResNetTranslator, check_divides
from genmodels.data.fields import DataSpec
from genmodels.losses import AdversarialLoss, discriminator_loss, generator_loss
from genmodels.metrics.features import train_extractor
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
from genmodels.schedules import linear_decay
from genmodels.text import assignments, check_given, nearest

JUDGE_IMAGES = 20_000  # shown to the independent classifier of the proofs


class StarGANConfig(AdversarialConfig):
    """Settings of StarGAN; the defaults are the paper's, for 128x128 images in batches of 16."""

    loss: AdversarialLoss = Field("wasserstein", description="adversarial loss")
    penalty: Penalty = Field("gp", description="penalty on the gradient of the discriminator's score")
    discriminator_norm: Literal["spectral", "none"] = Field("none", description="normalisation in D")
    attributes: tuple[str, ...] | None = Field(None, description="which of the data set's to translate; null: all")
    exclusive: bool = Field(False, description="an image has exactly one of them: they are classified as one choice")
    width: int = Field(64, ge=1, description="channels of the generator's first convolution")
    num_blocks: int = Field(6, ge=1, description="residual blocks")
    outer_kernel: Literal[3, 5, 7] = Field(7, description="of the generator's first and last convolution")
    discriminator_width: int = Field(64, ge=1, description="channels of D's first convolution; doubled by halvings")
    classification_weight: float = Field(1.0, ge=0, description="weight of the attribute loss, both networks")
    reconstruction_weight: float = Field(10.0, ge=0, description="weight of the way back")
    discriminator_steps: int = Field(5, ge=1, description="discriminator updates a generator update")
    lr: float = Field(1e-4, gt=0, description="Adam's learning rate")
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's first decay rate")
    decay_from: float = Field(0.5, ge=0, le=1, description="share of the training after which lr falls to 0")


class Generator(nn.Module):
    """Images [B, C, S, S] and attributes [B, A] of 0 and 1 -> images in [-1, 1]."""

    def __init__(self, channels: int, num_attributes: int, config: StarGANConfig):
        super().__init__()
        shape = (channels + num_attributes, channels, config.width, config.num_blocks)
        # Zeros, not reflection: see ResNetTranslator of constant channels, which the attributes are.
        self.translator = ResNetTranslator(*shape, "zeros", True, 4, config.outer_kernel)

    def forward(self, images: Tensor, attributes: Tensor) -> Tensor:
        """The translation."""
        tiled = attributes[:, :, None, None].expand(-1, -1, *images.shape[2:])
        return self.translator(torch.cat([images, tiled], dim=1))


class Discriminator(nn.Module):
    """Images [B, C, S, S] -> patch scores [B, 1, h, h] and attribute logits [B, A]; halved down to h of 2 or 3."""

    def __init__(self, channels: int, image_size: int, width: int, num_attributes: int):
        super().__init__()
        layers: list[nn.Module] = []
        before, side = channels, image_size
        while side > 3:
            after = 2 * before if layers else width
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.01, inplace=True)]
            before, side = after, side // 2
        self.layers = nn.Sequential(*layers)
        self.score = nn.Conv2d(before, 1, 3, padding=1, bias=False)
        self.attributes = nn.Conv2d(before, num_attributes, side, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and logits, fp32."""
        maps = self.layers(images)
        return self.score(maps).float(), self.attributes(maps).flatten(1).float()


class StarGAN(GenerativeModel):
    """Generator and discriminator with an attribute head."""

    Config = StarGANConfig
    batch_keys = ("image", "attributes")
    ema_nets = ("generator",)
    least_share = 2  # a target is another image's attributes
    proof_nets = ("discriminator",)  # its attribute head reads what a user's image has
    channels_last = False

    def __init__(self, config: StarGANConfig, data: DataSpec):
        super().__init__(config, data)
        self.config: StarGANConfig = config
        check_divides(data.image_size, 4, self.name)
        if data.image_size < 8:
            raise ValueError(f"{self.name} needs images of 8 pixels or more, not {data.image_size}")
        self.attributes = data.attributes if config.attributes is None else config.attributes
        if not data.attributes:
            raise ValueError(f"{self.name} needs attributes; data set {data.name!r} has none")
        self.columns = [self._index(name, data.attributes) for name in self.attributes]
        least = 2 if config.exclusive else 1
        if len(set(self.columns)) < max(len(self.columns), least):
            choices = ", ".join(data.attributes)
            raise ValueError(f"attributes {list(self.attributes)}: name {least} or more, each once; choices: {choices}")
        self.phases = (
            Phase("discriminator", ("discriminator",)),
            Phase("generator", ("generator",), every=config.discriminator_steps),
        )
        num = len(self.attributes)
        self.generator = Generator(data.channels, num, config)
        self.discriminator = Discriminator(data.channels, data.image_size, config.discriminator_width, num)
        # Not the attribute head: a bound on its slope would bound how sure it can be.
        normalise(config.discriminator_norm, self.discriminator.layers, self.discriminator.score)

    def check_attributes(self, attributes: NDArray[np.float32]) -> None:
        """Refuses `exclusive` where an image has none or several of the attributes."""
        sums = attributes[:, self.columns].sum(1)
        if self.config.exclusive and (sums != 1).any():
            names = ", ".join(self.attributes)
            raise ValueError(
                f"exclusive: {(sums == 0).sum()} images have none and {(sums > 1).sum()} several of {names};"
                " set it to false, or name attributes of which each image has one"
            )

    def _index(self, name: str, choices: tuple[str, ...]) -> int:
        if name not in choices:
            raise ValueError(f"unknown attribute {name!r}{nearest(name, choices)}; choices: {', '.join(choices)}")
        return choices.index(name)

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """The same Adam for both networks."""
        adam = OptimizerConfig(lr=self.config.lr, betas=(self.config.beta1, 0.999))
        return {phase.name: adam for phase in self.phases}

    def lr_scale(self, phase: Phase, progress: Progress) -> float:
        """Constant, then linear to 0."""
        return linear_decay(progress.fraction, self.config.decay_from)

    def _own(self, batch: Batch) -> Tensor:
        """The attributes that are translated, [B, A]."""
        return torch.stack([batch["attributes"][:, column] for column in self.columns], dim=1)

    def training_step(
        self, batch: Batch, phase: str, progress: Progress, noise: Noise, scratch: dict[str, Any]
    ) -> StepOutput:
        """The discriminator's or the generator's loss; targets are the attributes in another order."""
        images, own = batch["image"], self._own(batch)
        target = own[noise.uniform(len(images)).argsort()]
        step = self._discriminator_step if phase == "discriminator" else self._generator_step
        return step(images, own, target, noise)

    def _discriminator_step(self, images: Tensor, own: Tensor, target: Tensor, noise: Noise) -> StepOutput:
        with torch.no_grad():
            fake = self.generator(images, target)
        real, fake = self.config.shown(images, noise), self.config.shown(fake, noise)
        (real_score, logits), (fake_score, _) = self.discriminator(real), self.discriminator(fake)
        losses = {
            "adversarial": discriminator_loss(self.config.loss, real_score, fake_score),
            **self.config.penalised(lambda between: self.discriminator(between)[0], real, fake, noise),
            "classification": self.config.classification_weight * attribute_loss(logits, own, self.config.exclusive),
        }
        return StepOutput(losses, {"real_score": real_score.mean(), "fake_score": fake_score.mean()})

    def _generator_step(self, images: Tensor, own: Tensor, target: Tensor, noise: Noise) -> StepOutput:
        fake = self.generator(images, target)
        score, logits = self.discriminator(self.config.shown(fake, noise))
        back = F.l1_loss(self.generator(fake, own), images)
        losses = {
            "adversarial": generator_loss(self.config.loss, score),
            "classification": self.config.classification_weight * attribute_loss(logits, target, self.config.exclusive),
            "reconstruction": self.config.reconstruction_weight * back,
        }
        return StepOutput(losses)

    def condition(self, batch: Batch) -> Batch:
        """Images, each with the attributes of its neighbour in the batch."""
        return {"image": batch["image"], "attributes": self._own(batch).roll(1, 0)}

    @torch.no_grad()
    def controls(self) -> dict[str, tuple[str, ...]]:
        """Images to translate, and the attributes that may be changed in them."""
        values = ("1",) if self.config.exclusive else ("0", "1")
        return {"source": (), "attributes": tuple(f"{name}={value}" for name in self.attributes for value in values)}

    def encode_condition(self, **given: Any) -> Batch:
        """Images source [N, C, S, S] and attributes="hat=1,night=0"; D reads the others in the source."""
        check_given(self.name, given, required=("source", "attributes"))
        source = given["source"]
        logits = self.discriminator(source.to(next(self.discriminator.parameters()).device))[1]
        attributes = self._read(logits).to(source.device)
        asked = assignments(given["attributes"])
        for name, value in asked.items():
            column = self._index(name, self.attributes)
            if value not in ("0", "1"):
                raise ValueError(f"attributes: {name}={value!r}; choices: {name}=0, {name}=1")
            if self.config.exclusive:
                if value == "0" or len(asked) > 1:
                    raise ValueError(f"attributes: {name}={value}; an image has one of {', '.join(self.attributes)}")
                attributes.zero_()
            attributes[:, column] = float(value)
        return {"image": source, "attributes": attributes}

    def latent(self, num: int, generator: torch.Generator) -> Tensor:
        """None, [num, 0]: a translation follows from source and attributes."""
        return torch.zeros(num, 0)

    def generate(self, latent: Tensor, cond: Batch, progress: Progress) -> Tensor:
        """The images with the attributes of the condition."""
        return self.generator(cond["image"], cond["attributes"])

    def present(self, images: Tensor, cond: Batch) -> Tensor:
        """The source beside the translation."""
        return torch.cat([cond["image"], images], dim=3)

    def _read(self, logits: Tensor) -> Tensor:
        """Attributes [N, A] of 0 and 1 that logits stand for."""
        if self.config.exclusive:
            return F.one_hot(logits.argmax(1), logits.shape[1]).float()
        return (logits > 0).float()

    def _changed(self, attributes: Tensor, column: int) -> Tensor:
        """Attributes [N, A], one turned over; that one alone 1 where they are exclusive."""
        changed = torch.zeros_like(attributes) if self.config.exclusive else attributes.clone()
        changed[:, column] = 1 - changed[:, column]
        return changed

    @torch.no_grad()
    def proofs(self, context: ProofContext) -> list[Proof]:
        """What a classifier of real images sees in translations; their distance to the true target, where there is one.

        Held-out images of one group show the same thing with other attributes: each is a true target of the others.
        """
        images, own = context.test["image"][:256], self._own(context.test)[:256]
        labels = self._own(context.train)
        with torch.enable_grad():
            labels = labels.argmax(1) if self.config.exclusive else labels
            num = len(self.attributes)  # some may be rare
            judge = train_extractor(context.train["image"], labels, num_images=JUDGE_IMAGES, num_classes=num)
        on_real = self._read(judge.logits(images)).eq(own).float()
        proofs, kept = [], []
        for i, name in enumerate(self.attributes):
            target = self._changed(own, i)
            fake = self.generator(images, target)
            right = self._read(judge.logits(fake)).eq(target).float()
            translated = (target != own).any(1)  # all, but for exclusive attributes those that have it already
            kept += right.mean(0).tolist()[:i] + right.mean(0).tolist()[i + 1 :]
            seen, can_judge = right[translated, i].mean().item(), _read_right(on_real, own, target, translated, i)
            claim = f"{name} is seen in translations 0.8 times as often as it is read right in real images"
            holds = seen >= 0.8 * can_judge and can_judge >= 0.8  # a judge that guesses proves nothing
            proofs.append(Proof(claim, seen, 0.8 * can_judge, holds, "accuracy"))
        if kept and not self.config.exclusive:
            mean, bound = sum(kept) / len(kept), 0.9 * on_real.mean().item()
            proofs.append(
                Proof("attributes that were not flipped stay as they were", mean, bound, mean >= bound, "accuracy")
            )
        back = self.generator(self.generator(images, own.roll(1, 0)), own)
        error, other = ((each - images).abs().mean().item() for each in (back, images.roll(1, 0)))
        claim = "translated and translated back: L1 to the source below half that of other images"
        proofs.append(Proof(claim, error, 0.5 * other, error < 0.5 * other, "L1"))
        return proofs + self._target_proofs(context)

    def _target_proofs(self, context: ProofContext) -> list[Proof]:
        """L1 of translations to their true targets, against leaving the image as it is.

        None where a group has two images of the same attributes: then they differ in more than those.
        """
        if "group" not in context.test:
            return []
        images, own, group = context.test["image"], self._own(context.test), context.test["group"]
        together = group[:, None] == group
        alike = (context.test["attributes"][:, None] == context.test["attributes"]).all(2)
        pairs = (together & (own[:, None] != own).any(2)).nonzero()[:1024]
        if not len(pairs) or (together & alike).sum() > len(images):
            return []
        sources, targets = pairs.T
        fake = torch.cat(
            [self.generator(images[s], own[t]) for s, t in zip(sources.split(64), targets.split(64), strict=True)]
        )
        translated, kept = ((each - images[targets]).abs().mean().item() for each in (fake, images[sources]))
        return [Proof("L1 to the true target below the source's own", translated, kept, translated < kept, "L1")]

    @torch.no_grad()
    def pictures(self, context: ProofContext) -> dict[str, Tensor]:
        """Rows of a source, its reconstruction, then each attribute changed in turn."""
        images, own = context.test["image"][:16], self._own(context.test)[:16]
        targets = [own, *(self._changed(own, i) for i in range(len(self.attributes)))]
        return {"translations": torch.stack([images, *(self.generator(images, target) for target in targets)], dim=1)}


def _read_right(right: Tensor, own: Tensor, target: Tensor, translated: Tensor, column: int) -> float:
    """How often an attribute is read right in real images of the values that it is translated to; a rare one seldom is.

    right, own and target [N, A] of 0 and 1, translated [N] of bools; 0 where no real image has a value asked for.
    """
    rates = torch.stack([right[own[:, column] == value, column].mean() for value in (0, 1)])
    return rates[target[translated, column].long()].mean().nan_to_num().item()


def attribute_loss(logits: Tensor, attributes: Tensor, exclusive: bool = False) -> Tensor:
    """Binary cross-entropy in nats, summed over attributes [B, A], mean over the batch, as the authors' code.

    exclusive: exactly one attribute is 1 in each row, and cross-entropy takes its place.
    """
    if exclusive:
        return F.cross_entropy(logits, attributes)
    return F.binary_cross_entropy_with_logits(logits, attributes, reduction="sum") / len(logits)
