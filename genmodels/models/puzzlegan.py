"""Puzzle-GAN (Lee et al. 2018, "Unsupervised Holistic Image Generation from Key Local Patches").

Key patches in, without their place and size; the whole image out. M is the union of the patches' boxes, s another
image of the batch; D is shown the real image x, the generated G, and two composites whose parts are a stranger's:

    min_D  -log D(x) - log(1 - D(G)) - log(1 - D(s M + x (1 - M))) - log(1 - D(x M + s (1 - M)))
    min_G  -log D(G) + w |M^ - M|_1 + w |G M^ - x M|_1

with L1 summed over pixels and the batch, and w falling from 1e-2 to 1e-4 along a line of logarithms.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from genmodels.adversarial import BatchNormConfig, normalise
from genmodels.boxes import cut, masked_l1, overlap, scattered, union
from genmodels.convnets import Encoder, base_size, init_dcgan
from genmodels.data.fields import DataSpec
from genmodels.losses import BoundedLoss, discriminator_loss, fake_loss, generator_loss
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
from genmodels.schedules import log_decay
from genmodels.text import check_given

# B batch, P patches an image, C channels, S side of image and patch, both pixels

MOST_HALVINGS = 4  # the paper's: 64, 128, 256, 512 channels at 128 pixels


class PuzzleGANConfig(BatchNormConfig):
    """Settings of Puzzle-GAN; the defaults are the paper's, for 128x128 images."""

    # No Wasserstein loss: against three fakes for each real image, a lower score for all lowers it without end.
    loss: BoundedLoss = Field("non_saturating", description="adversarial loss")
    noise_dim: int = Field(128, ge=1, description="dimensions of z")
    embedding_dim: int = Field(512, ge=1, description="dimensions of the patches' embedding")
    width: int = Field(64, ge=1, description="channels at half the image size; doubled with every halving")
    discriminator_width: int = Field(64, ge=1, description="the discriminator's")
    l1_weight: tuple[PositiveFloat, PositiveFloat] = Field(
        (1e-2, 1e-4), description="first and last weight of the summed L1 terms"
    )
    mask_loss: Literal["l1", "cross_entropy"] = Field(
        "l1", description="the paper's L1 stops learning where the sigmoid saturates; cross-entropy does not"
    )
    discriminator_steps: int = Field(2, ge=1, description="discriminator updates a generator update")
    lr: float = Field(2e-4, gt=0, description="Adam's learning rate")
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's first decay rate")


class Generator(nn.Module):
    """Patches [B, P, C, S, S] and z [B, Z] -> image [B, C, S, S] in [-1, 1], logits of the mask [B, 1, S, S].

    One encoder reads every patch; its features are summed over patches at every level, so their order has no effect.
    The mask decoder takes these sums as skips, the image decoder takes the mask decoder's activations.
    """

    def __init__(self, channels: int, image_size: int, config: PuzzleGANConfig):
        super().__init__()
        halvings = min(base_size(image_size)[1], MOST_HALVINGS)
        widths = [config.width * 2**i for i in range(halvings)]  # from half the image size down
        self.side, self.top = image_size // 2**halvings, widths[-1]
        flat = self.top * self.side**2
        self.encoder = nn.ModuleList(_down(*pair) for pair in zip([channels, *widths], widths, strict=False))
        self.embed = nn.Linear(flat, config.embedding_dim)
        self.mask_start = nn.Sequential(nn.Linear(config.embedding_dim, flat), nn.ReLU())
        self.image_start = nn.Sequential(nn.Linear(config.embedding_dim + config.noise_dim, flat), nn.ReLU())
        ups = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (512, 256), (256, 128), (128, 64)
        self.mask_ups = nn.ModuleList(_up(2 * before, after) for before, after in ups)
        self.image_ups = nn.ModuleList(_up(2 * before, after) for before, after in ups)
        self.to_mask = nn.ConvTranspose2d(2 * widths[0], 1, 4, stride=2, padding=1)
        self.to_image = nn.ConvTranspose2d(2 * widths[0], channels, 4, stride=2, padding=1)

    def forward(self, patches: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Image, and the mask before its sigmoid."""
        read = self.read(patches)
        return self.draw(read, z), self.mask_logits(read)

    def read(self, patches: Tensor) -> Reading:
        """All that does not depend on z."""
        num_patches, maps, sums = patches.shape[1], patches.flatten(0, 1), []
        for down in self.encoder:
            maps = down(maps)
            sums.append(maps.unflatten(0, (-1, num_patches)).sum(1).to(maps.dtype))  # autocast on CUDA: fp32
        embedding = self.embed(sums[-1].flatten(1))
        masks = [self.mask_start(embedding).view_as(sums[-1])]
        for skip, up in zip(sums[:0:-1], self.mask_ups, strict=True):
            masks.append(up(torch.cat([masks[-1], skip], dim=1)))
        return Reading(embedding, masks, sums[0])

    def draw(self, read: Reading, z: Tensor) -> Tensor:
        """The image [B, C, S, S] in [-1, 1] of z [B, Z]."""
        embedding, masks, _ = read
        image = self.image_start(torch.cat([embedding, z.to(embedding.dtype)], dim=1)).view_as(masks[0])
        for mask, up in zip(masks, self.image_ups, strict=False):  # the last is for the image itself
            image = up(torch.cat([image, mask], dim=1))
        return torch.tanh(self.to_image(torch.cat([image, masks[-1]], dim=1)).float())

    def mask_logits(self, read: Reading) -> Tensor:
        """The mask [B, 1, S, S] before its sigmoid."""
        return self.to_mask(torch.cat([read.masks[-1], read.finest], dim=1)).float()


class Reading(NamedTuple):
    """What the generator sees in patches."""

    embedding: Tensor  # [B, E]
    masks: list[Tensor]  # the mask decoder's activations, coarsest first
    finest: Tensor  # the encoder's at half the image size, summed over patches


def _down(before: int, after: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.LeakyReLU(0.2, inplace=True))


def _up(before: int, after: int) -> nn.Sequential:
    convolution = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


class PuzzleGAN(GenerativeModel):
    """Generator of image and mask, discriminator of images."""

    Config = PuzzleGANConfig
    batch_keys = ("image", "parts")
    ema_nets = ("generator",)
    least_share = 2  # a composite takes from a stranger

    def __init__(self, config: PuzzleGANConfig, data: DataSpec):
        super().__init__(config, data)
        self.config: PuzzleGANConfig = config
        if not data.num_parts:
            raise ValueError(f"{self.name} needs key parts; data set {data.name!r} has none")
        self.phases = (
            Phase("discriminator", ("discriminator",)),
            Phase("generator", ("generator",), every=config.discriminator_steps),
        )
        self.generator = Generator(data.channels, data.image_size, config)
        self.discriminator = Encoder(data.channels, data.image_size, config.discriminator_width, 1, config.encoder_norm)
        self.apply(init_dcgan)
        normalise(config.discriminator_norm, self.discriminator)

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """The same Adam for both networks."""
        adam = OptimizerConfig(lr=self.config.lr, betas=(self.config.beta1, 0.999))
        return {phase.name: adam for phase in self.phases}

    def training_step(
        self, batch: Batch, phase: str, progress: Progress, noise: Noise, scratch: dict[str, Any]
    ) -> StepOutput:
        """The discriminator's or the generator's loss."""
        images, boxes = batch["image"], batch["parts"]
        mask = union(boxes, images.shape[-1])
        z = 2 * noise.uniform(len(images), self.config.noise_dim) - 1
        if phase == "discriminator":
            read = self._read(cut(images, boxes), progress, scratch)
            return self._discriminator_step(images, read, mask, z, noise)
        read = scratch.pop("read", None) or self.generator.read(cut(images, boxes))
        image, mask_logits = self.generator.draw(read, z), self.generator.mask_logits(read)
        guess = torch.sigmoid(mask_logits)
        # Summed over the global batch: the gradients of all ranks are averaged, so each sums its share and scales it.
        weight = progress.stage.batch_size * log_decay(progress.fraction, *self.config.l1_weight)
        losses = {
            "adversarial": generator_loss(self.config.loss, self.discriminator(self.config.shown(image, noise))),
            "mask": weight * (image_l1(guess, mask) if self.config.mask_loss == "l1" else image_bce(mask_logits, mask)),
            "appearance": weight * image_l1(image * guess, images * mask),
        }
        return StepOutput(losses)

    def _read(self, patches: Tensor, progress: Progress, scratch: dict[str, Any]) -> Reading:
        """What the generator reads, kept with its gradients for its own phase if that follows: a step is 1.10 as fast.

        Between the two phases of a step its weights stay as they are.
        """
        if progress.step % self.config.discriminator_steps:
            with torch.no_grad():
                return self.generator.read(patches)
        self.generator.requires_grad_(True)  # the trainer has it off in the discriminator's phase
        scratch["read"] = self.generator.read(patches)
        return scratch["read"]

    def _discriminator_step(self, images: Tensor, read: Reading, mask: Tensor, z: Tensor, noise: Noise) -> StepOutput:
        with torch.no_grad():
            fake = self.generator.draw(read, z)
        strangers = others(images, noise.uniform(len(images)))
        composites = {
            "strange_parts": strangers * mask + images * (1 - mask),
            "strange_rest": images * mask + strangers * (1 - mask),
        }
        real, fake = self.config.shown(images, noise), self.config.shown(fake, noise)
        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake)
        losses = {"adversarial": discriminator_loss(self.config.loss, real_logits, fake_logits)}
        for name, composite in composites.items():
            losses[name] = fake_loss(self.config.loss, self.discriminator(self.config.shown(composite, noise))).mean()
        losses |= self.config.penalised(self.discriminator, real, fake, noise)
        return StepOutput(losses, {"real_logit": real_logits.mean(), "fake_logit": fake_logits.mean()})

    def condition(self, batch: Batch) -> Batch:
        """The key patches of images, [N, P, C, S, S]."""
        return {"patches": cut(batch["image"], batch["parts"])}

    def controls(self) -> dict[str, tuple[str, ...]]:
        """Key patches."""
        return {"patches": ()}

    def encode_condition(self, **given: Any) -> Batch:
        """The user's own patches [N, C, S, S], as many an image as the data set has parts, image by image."""
        check_given(self.name, given, required=("patches",))
        patches, num = given["patches"], self.data.num_parts
        if len(patches) % num:
            raise ValueError(f"patches: {len(patches)} do not divide into images of {num}; give {num} an image")
        return {"patches": patches.unflatten(0, (-1, num))}

    def latent(self, num: int, generator: torch.Generator) -> Tensor:
        """U(-1, 1), [num, Z]."""
        return 2 * torch.rand(num, self.config.noise_dim, generator=generator) - 1

    def generate(self, latent: Tensor, cond: Batch, progress: Progress) -> Tensor:
        """The whole image around the patches."""
        return self.generator(cond["patches"], latent)[0]

    def present(self, images: Tensor, cond: Batch) -> Tensor:
        """The patches, then the image."""
        return torch.cat([*cond["patches"].unbind(1), images], dim=3)

    @torch.no_grad()
    def proofs(self, context: ProofContext) -> list[Proof]:
        """Places are found, looks are kept, and samples near the data's features, each on held-out images."""
        real, boxes = context.test["image"][:256], context.test["parts"][:256]
        image, guess = self._rebuild(real, boxes)
        size, mask = real.shape[-1], union(boxes, real.shape[-1])
        mean = context.train["image"].mean(0, keepdim=True)
        usual = union(context.train["parts"], size).mean(0, keepdim=True)
        found = overlap(guess > 0.5, mask > 0)
        anywhere = overlap(union(scattered(boxes), size) > 0, mask > 0)
        always = overlap((usual > 0.5).expand_as(mask), mask > 0)
        median = context.train["image"].median(0, keepdim=True).values
        inside, *flat = (masked_l1(x, real, mask) for x in (image, mean, median))
        proofs = [
            Proof(
                "mask overlap above that of boxes of the same sizes at random", found, anywhere, found > anywhere, "IoU"
            ),
            Proof("mask overlap above that of the places where parts mostly are", found, always, found > always, "IoU"),
            Proof(
                "L1 inside the mask below the mean and the median image's", inside, min(flat), inside < min(flat), "L1"
            ),
        ]
        return proofs + context.halved("fid")

    def _rebuild(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        z = self.latent(len(images), torch.Generator().manual_seed(0)).to(images.device)
        image, mask_logits = self.generator(cut(images, boxes), z)
        return image, torch.sigmoid(mask_logits)

    @torch.no_grad()
    def pictures(self, context: ProofContext) -> dict[str, Tensor]:
        """Rows of patches, the generated image, its mask, the true mask and the true image."""
        real, boxes = context.test["image"][:16], context.test["parts"][:16]
        image, guess = self._rebuild(real, boxes)
        masks = [(2 * mask - 1).expand_as(real) for mask in (guess, union(boxes, real.shape[-1]))]
        return {"puzzles": torch.stack([*cut(real, boxes).unbind(1), image, *masks, real], dim=1)}


def others(images: Tensor, draws: Tensor) -> Tensor:
    """For each image [B, ...] another one of the batch: the next on a round in the order of draws [B]."""
    order = draws.argsort()
    return images[order.roll(1)[order.argsort()]]


def image_l1(images: Tensor, targets: Tensor) -> Tensor:
    """L1 summed over an image's values, mean over the batch."""
    return (images - targets).abs().flatten(1).sum(1).mean()


def image_bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy in nats, summed over an image's pixels, mean over the batch."""
    return F.binary_cross_entropy_with_logits(logits, mask, reduction="none").flatten(1).sum(1).mean()
