"""CycleGAN (Zhu et al. 2017): translation between two domains that no pairs connect.

Generators G: A -> B and F: B -> A with discriminators D_B, D_A on patches; least squares, w = 10, v = w / 2:

    min_G,F  E[(D_B(G(a)) - 1)^2] + E[(D_A(F(b)) - 1)^2]
             + w (|F(G(a)) - a|_1 + |G(F(b)) - b|_1) + v (|G(b) - b|_1 + |F(a) - a|_1)
    min_D_B  (E[(D_B(b) - 1)^2] + E[D_B(G(a))^2]) / 2,  G(a) out of a pool of past ones; D_A likewise

The cycle alone allows colours to be inverted on the way there and back; the last, identity term speaks against it.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genmodels.adversarial import AdversarialConfig, normalise
from genmodels.convnets import ResNetTranslator, check_divides, init_dcgan
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
from genmodels.text import check_given

JUDGE_IMAGES = 6_400  # shown to the independent classifier of the proofs


class CycleGANConfig(AdversarialConfig):
    """Settings of CycleGAN; the defaults are the paper's, which trains on batches of one image."""

    loss: AdversarialLoss = Field("least_squares", description="adversarial loss")
    discriminator_norm: Literal["instance", "spectral", "none"] = Field("instance", description="normalisation in D")
    width: int = Field(64, ge=1, description="channels of the generators' first convolution")
    num_blocks: int | None = Field(None, ge=1, description="residual blocks; null: 6 up to 128 pixels, 9 above")
    outer_kernel: Literal[3, 5, 7] = Field(7, description="of the generators' first and last convolution")
    discriminator_width: int = Field(64, ge=1, description="channels of the discriminators' first convolution")
    layers: int = Field(3, ge=1, description="halvings in the discriminators: patches of 70 pixels at 3, 34 at 2")
    cycle_weight: float = Field(10.0, ge=0, description="weight of the cycle loss, both ways")
    identity_weight: float = Field(0.5, ge=0, description="weight of the identity loss, times cycle_weight")
    pool_size: int = Field(50, ge=1, description="past fakes kept for each discriminator (of one worker)")
    lr: float = Field(2e-4, gt=0, description="Adam's learning rate")
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's first decay rate")
    decay_from: float = Field(0.5, ge=0, le=1, description="share of the training after which lr falls to 0")


class PatchDiscriminator(nn.Module):
    """Images [B, C, S, S] -> one logit a patch [B, 1, H, W]; at 3 layers a patch is 70x70 (Isola et al. 2017)."""

    def __init__(self, channels: int, width: int, layers: int, instance_norm: bool = True):
        super().__init__()
        stack: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        before = width
        for i in range(1, layers + 1):
            after = width * min(2**i, 8)
            stack += [
                nn.Conv2d(before, after, 4, stride=2 if i < layers else 1, padding=1, bias=not instance_norm),
                *([nn.InstanceNorm2d(after)] if instance_norm else []),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            before = after
        self.layers = nn.Sequential(*stack, nn.Conv2d(before, 1, 4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, fp32."""
        return self.layers(images).float()


class ImagePool(nn.Module):
    """The past fakes that a discriminator is shown beside new ones (Shrivastava et al. 2017), as buffers."""

    images: Tensor
    count: Tensor

    def __init__(self, size: int, channels: int, image_size: int):
        super().__init__()
        self.register_buffer("images", torch.zeros(size, channels, image_size, image_size))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def exchange(self, fakes: Tensor, noise: Noise) -> Tensor:
        """What the discriminator sees in the place of fakes [B, C, S, S], which take turns.

        Until the pool is full each is kept and seen. Then half of them are seen, and the others take the place of
        a past one, which is seen instead. Nothing waits for the device.
        """
        slots, coins = noise.integers(len(self.images), len(fakes)), noise.uniform(len(fakes)) < 0.5
        shown = []
        for fake, slot, heads in zip(fakes.to(self.images.dtype).split(1), slots.split(1), coins.split(1), strict=True):
            filling = self.count < len(self.images)
            slot = torch.where(filling, self.count, slot)
            past = self.images[slot]
            shown.append(torch.where(filling | heads, fake, past))
            self.images[slot] = torch.where(filling | ~heads, fake, past)
            self.count += filling
        return torch.cat(shown)


class CycleGAN(GenerativeModel):
    """Two generators, two discriminators, two pools."""

    Config = CycleGANConfig
    batch_keys = ("image_A", "image_B")
    output_key = "image_B"
    phases = (
        Phase("generators", ("to_b", "to_a")),
        Phase("discriminators", ("discriminator_a", "discriminator_b")),
    )
    ema_nets = ("to_b", "to_a")
    rank_buffers = ("pool_a.", "pool_b.")
    channels_last = False

    def __init__(self, config: CycleGANConfig, data: DataSpec):
        super().__init__(config, data)
        self.config: CycleGANConfig = config
        check_divides(data.image_size, 4, self.name)
        if data.image_size < 3 * 2**config.layers:
            needed = 3 * 2**config.layers
            raise ValueError(f"layers {config.layers} need images of {needed} pixels or more, not {data.image_size}")
        num_blocks = config.num_blocks or (6 if data.image_size <= 128 else 9)
        c, width = data.channels, config.width
        self.to_b, self.to_a = (
            ResNetTranslator(c, c, width, num_blocks, "reflect", False, 3, config.outer_kernel) for _ in range(2)
        )
        self.discriminator_a, self.discriminator_b = (
            PatchDiscriminator(c, config.discriminator_width, config.layers, config.discriminator_norm == "instance")
            for _ in range(2)
        )
        self.pool_a, self.pool_b = (ImagePool(config.pool_size, c, data.image_size) for _ in range(2))
        self.apply(init_dcgan)
        normalise(config.discriminator_norm, self.discriminator_a, self.discriminator_b)

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """The same Adam for both phases."""
        adam = OptimizerConfig(lr=self.config.lr, betas=(self.config.beta1, 0.999))
        return {phase.name: adam for phase in self.phases}

    def lr_scale(self, phase: Phase, progress: Progress) -> float:
        """Constant, then linear to 0."""
        return linear_decay(progress.fraction, self.config.decay_from)

    def training_step(
        self, batch: Batch, phase: str, progress: Progress, noise: Noise, scratch: dict[str, Any]
    ) -> StepOutput:
        """The generators' losses; then the discriminators', on the fakes that the generators left."""
        a, b = batch["image_A"], batch["image_B"]
        if phase == "generators":
            return self._generators_step(a, b, noise, scratch)
        losses = {}
        for name, real in (("a", a), ("b", b)):
            discriminator, pool = getattr(self, f"discriminator_{name}"), getattr(self, f"pool_{name}")
            fake = self.config.shown(pool.exchange(scratch[f"fake_{name}"], noise), noise)
            real = self.config.shown(real, noise)
            logits = discriminator(torch.cat([real, fake])).chunk(2)  # no norm here mixes images
            losses[name] = 0.5 * discriminator_loss(self.config.loss, *logits)
            penalty = self.config.penalised(discriminator, real, fake, noise)
            losses |= {f"{key}_{name}": value for key, value in penalty.items()}
        return StepOutput(losses)

    def _generators_step(self, a: Tensor, b: Tensor, noise: Noise, scratch: dict[str, Any]) -> StepOutput:
        if self.config.identity_weight:
            fake_b, same_b = self.to_b(torch.cat([a, b])).chunk(2)
            fake_a, same_a = self.to_a(torch.cat([b, a])).chunk(2)
        else:
            fake_b, fake_a = self.to_b(a), self.to_a(b)
        scratch["fake_a"], scratch["fake_b"] = fake_a.detach(), fake_b.detach()
        cycle = F.l1_loss(self.to_a(fake_b), a) + F.l1_loss(self.to_b(fake_a), b)
        logits_a, logits_b = (
            discriminator(self.config.shown(fake, noise))
            for discriminator, fake in ((self.discriminator_a, fake_a), (self.discriminator_b, fake_b))
        )
        losses = {
            "adversarial_a": generator_loss(self.config.loss, logits_a),
            "adversarial_b": generator_loss(self.config.loss, logits_b),
            "cycle": self.config.cycle_weight * cycle,
        }
        if self.config.identity_weight:
            identity = F.l1_loss(same_a, a) + F.l1_loss(same_b, b)
            losses["identity"] = self.config.identity_weight * self.config.cycle_weight * identity
        return StepOutput(losses)

    def condition(self, batch: Batch) -> Batch:
        """Images of A, to be translated to B."""
        return {"image_A": batch["image_A"]}

    def controls(self) -> dict[str, tuple[str, ...]]:
        """Images to translate, and which way."""
        return {"source": (), "direction": ("A2B", "B2A")}

    def encode_condition(self, **given: Any) -> Batch:
        """Images source [N, C, S, S] with direction "A2B", the default, or "B2A"."""
        check_given(self.name, given, required=("source",), optional=("direction",))
        direction = given.get("direction", "A2B")
        if direction not in ("A2B", "B2A"):
            raise ValueError(f"unknown direction {direction!r}; choices: A2B, B2A")
        return {f"image_{direction[0]}": given["source"]}

    def latent(self, num: int, generator: torch.Generator) -> Tensor:
        """None, [num, 0]: a translation follows from its source."""
        return torch.zeros(num, 0)

    def generate(self, latent: Tensor, cond: Batch, progress: Progress) -> Tensor:
        """The translation of image_A to B, or of image_B to A."""
        return self.to_b(cond["image_A"]) if "image_A" in cond else self.to_a(cond["image_B"])

    def present(self, images: Tensor, cond: Batch) -> Tensor:
        """The source beside the translation."""
        return torch.cat([*cond.values(), images], dim=3)

    @torch.no_grad()
    def proofs(self, context: ProofContext) -> list[Proof]:
        """A judge of real A and B calls G(A) B; the cycle comes back; the aligned truth is met, where it is known."""
        train, a, b = context.train, context.test["image_A"][:256], context.test["image_B"][:256]
        fake_b, fake_a = self.to_b(a), self.to_a(b)
        proofs = self._judged(train, {"A": fake_a, "B": fake_b}, {"A": a, "B": b})
        back, mean = l1(self.to_a(fake_b), a), l1(train["image_A"].mean(0), a)
        proofs.append(Proof("cycle L1 |F(G(a)) - a| below the mean image's", back, mean, back < mean, "L1"))
        if context.paired:
            for claim, fake, source, truth in (("G(a)", fake_b, a, b), ("F(b)", fake_a, b, a)):
                error, identity = l1(fake, truth), l1(source, truth)
                proofs.append(
                    Proof(f"{claim} nearer the aligned truth than its source", error, identity, error < identity, "L1")
                )
        return proofs

    def _judged(self, train: Batch, fakes: Batch, reals: Batch) -> list[Proof]:
        """Translations must pass for their domain nine times out of ten as often as held-out images of it do."""
        domains = [train["image_A"], train["image_B"]]
        labels = torch.cat([torch.full((len(images),), i) for i, images in enumerate(domains)])
        with torch.enable_grad():
            judge = train_extractor(torch.cat(domains), labels, num_images=JUDGE_IMAGES)
        proofs = []
        for i, name in enumerate(fakes):
            share, bound = (float((judge.logits(x[name]).argmax(1) == i).float().mean()) for x in (fakes, reals))
            claim = f"an independent classifier takes translations for {name}"
            proofs.append(Proof(claim, share, 0.9 * bound, share >= 0.9 * bound, "share"))
        return proofs

    @torch.no_grad()
    def pictures(self, context: ProofContext) -> dict[str, Tensor]:
        """Rows of source, translation, its way back, and the aligned truth where there is one."""
        a, b = context.test["image_A"][:16], context.test["image_B"][:16]
        ways = {"A2B": (a, self.to_b, self.to_a, b), "B2A": (b, self.to_a, self.to_b, a)}
        rows = {}
        for name, (source, there, back, truth) in ways.items():
            fake = there(source)
            rows[name] = torch.stack([source, fake, back(fake), *([truth] if context.paired else [])], dim=1)
        return rows


def l1(images: Tensor, truth: Tensor) -> float:
    """Mean absolute difference on [-1, 1]; broadcasts."""
    return (images - truth).abs().mean().item()
