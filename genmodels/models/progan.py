"""ProGAN: Karras et al. 2018, "Progressive Growing of GANs for Improved Quality, Stability, and Variation".

Both networks start at 4x4 pixels; each doubling of the image size fades one block into either of them.

    critic:     min  E[D(G(z))] - E[D(x)] + 10 E[(|grad D(x~)| - t)^2] / t^2 + 0.001 E[D(x)^2]
    generator:  min -E[D(G(z))]

with x~ between real and generated images, and t = 1. "Official" below is the authors' released code.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from genmodels.adversarial import AdversarialConfig, Penalty
from genmodels.data.fields import DataSpec
from genmodels.layers import (
    HE_GAIN,
    EqualizedConv2d,
    EqualizedLinear,
    PixelNorm,
    downsample2x,
    minibatch_stddev,
    upsample2x,
)
from genmodels.losses import AdversarialLoss, discriminator_loss, generator_loss
from genmodels.model import (
    Batch,
    GenerativeModel,
    Noise,
    OptimizerConfig,
    Phase,
    Progress,
    Proof,
    ProofContext,
    Stage,
    StepOutput,
)

LARGEST = 1024  # pixels; the paper's CelebA-HQ
MS_SSIM_TOLERANCE = 0.05  # ours: how far the generated pairs' similarity may lie from the reals'


def check_size(image_size: int, start_size: int = 4) -> int:
    """`image_size` if doubling `start_size` reaches it, else ValueError."""
    choices = doublings(start_size, LARGEST)
    if image_size not in choices:
        options = ", ".join(map(str, choices))
        raise ValueError(f"image_size {image_size} is no doubling of start_size {start_size}; choices: {options}")
    return image_size


def doublings(low: int, high: int) -> tuple[int, ...]:
    """low, 2 low, 4 low ... up to `high`."""
    return tuple(low * 2**k for k in range((high // low).bit_length()))


Size = Annotated[int, AfterValidator(check_size)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class ProGANConfig(AdversarialConfig):
    """The paper's values for 1024x1024 as defaults.

    Official `batch_sizes` on one GPU: {4: 128, 8: 128, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4, 1024: 4}.
    The paper's CIFAR-10 record is the recipe cifar10 of params.yaml.
    """

    loss: AdversarialLoss = Field("wasserstein", description="adversarial loss")
    penalty: Penalty = Field("gp", description="penalty on the critic's gradient")
    latent_dim: int = Field(512, ge=1, description="dimensions of the latent")
    fmap_base: int = Field(8192, ge=2, description="channels at size s are min(fmap_base / (s / 2), fmap_max)")
    fmap_max: int = Field(512, ge=1, description="most channels of any layer")
    hold_images: int = Field(600_000, ge=1, description="images shown at each size but the last, which takes the rest")
    fade_images: int = Field(600_000, ge=1, description="images shown while a new size fades in")
    start_size: Size = Field(4, description="image size that training starts at; data.image_size: no growing")
    batch_sizes: dict[Size, PositiveInt] = Field({}, description="global batch by image size; else the training's")
    lr: float = Field(1e-3, gt=0, description="learning rate of both networks")
    lr_scales: dict[Size, PositiveFloat] = Field({}, description="factor on lr by image size; else 1")
    betas: tuple[Decay, Decay] = Field((0.0, 0.99), description="decay rates of Adam's two moments")
    eps: float = Field(1e-8, gt=0, description="Adam's epsilon")
    penalty_target: float = Field(1.0, gt=0, description="gradient norm that penalty gp asks for (CIFAR-10: 750)")
    drift_weight: float = Field(1e-3, ge=0, description="weight of E[D(x)^2], which keeps the real scores near 0")
    group_size: int = Field(4, ge=1, description="images (of one worker) that minibatch stddev compares")
    critic_steps: int = Field(1, ge=1, description="critic's updates for each of the generator's")
    simultaneous: bool = Field(False, description="step both networks together (CIFAR-10), not in turn")

    @model_validator(mode="after")
    def _only_gp_has_a_target(self) -> ProGANConfig:
        if self.penalty != "gp" and self.penalty_target != 1:
            raise ValueError(f"penalty_target {self.penalty_target} is of penalty 'gp', not {self.penalty!r}")
        return self


def channels(size: int, fmap_base: int, fmap_max: int) -> int:
    """Feature maps at image size `size`: min(fmap_base / 2^s, fmap_max) with s = log2(size) - 1, as official."""
    count = min(fmap_base // (size // 2), fmap_max)
    if count < 1:
        raise ValueError(f"fmap_base {fmap_base} leaves no channels at size {size}; it needs {size // 2} or more")
    return count


def convolution(
    inputs: int, outputs: int, kernel_size: int = 3, resample: Literal["up", "down"] | None = None
) -> nn.Sequential:
    """Convolution and activation, as both networks use them; averaging comes before the activation, as official."""
    activation = nn.LeakyReLU(0.2, inplace=True)  # half the memory: a convolution does not need its own output
    return nn.Sequential(EqualizedConv2d(inputs, outputs, kernel_size, resample=resample), activation)


class Generator(nn.Module):
    """Latents [B, Z] -> images [B, C, size, size], about [-1, 1] but unbounded (no tanh).

    widths: feature maps by image size, 4 first. The paper's first bias is one a map; here it is one a unit.
    """

    def __init__(self, latent_dim: int, widths: dict[int, int], image_channels: int):
        super().__init__()
        self.stem = nn.Sequential(
            PixelNorm(),
            # Official gain: it makes the dense layer equal a 4x4 convolution over a 1x1 map, fan-in included.
            EqualizedLinear(latent_dim, widths[4] * 16, gain=HE_GAIN / 4),
            nn.Unflatten(1, (widths[4], 4, 4)),
            nn.LeakyReLU(0.2),
            PixelNorm(),
            convolution(widths[4], widths[4]),
            PixelNorm(),
        )
        self.blocks = nn.ModuleDict()
        for size in list(widths)[1:]:
            self.blocks[str(size)] = nn.Sequential(
                convolution(widths[size // 2], widths[size], resample="up"),
                PixelNorm(),
                convolution(widths[size], widths[size]),
                PixelNorm(),
            )
        self.to_rgb = nn.ModuleDict(
            {str(size): EqualizedConv2d(width, image_channels, 1, gain=1) for size, width in widths.items()}
        )

    def forward(self, latents: Tensor, size: int, fade: float = 1.0) -> Tensor:
        """Images of `size`; `fade` in [0, 1] leads from the doubled images of size / 2 to those of `size`."""
        hidden = coarser = self.stem(latents)
        for level in doublings(8, size):
            coarser, hidden = hidden, self.blocks[str(level)](hidden)
        images = self.to_rgb[str(size)](hidden)
        if fade == 1:
            return images
        return torch.lerp(upsample2x(self.to_rgb[str(size // 2)](coarser)), images, fade)


class Critic(nn.Module):
    """Images [B, C, size, size] -> scores [B] in fp32. The size of the images says how many blocks run."""

    def __init__(self, widths: dict[int, int], image_channels: int, dense_width: int, group_size: int):
        super().__init__()
        self.group_size = group_size
        self.from_rgb = nn.ModuleDict({str(size): convolution(image_channels, widths[size], 1) for size in widths})
        self.blocks = nn.ModuleDict()
        for size in list(widths)[1:]:
            self.blocks[str(size)] = nn.Sequential(
                convolution(widths[size], widths[size]),
                convolution(widths[size], widths[size // 2], resample="down"),
            )
        self.head = nn.Sequential(
            convolution(widths[4] + 1, widths[4]),
            nn.Flatten(),
            EqualizedLinear(widths[4] * 16, dense_width),
            nn.LeakyReLU(0.2),
            EqualizedLinear(dense_width, 1, gain=1),
        )

    def forward(self, images: Tensor, fade: float = 1.0, parts: int = 1) -> Tensor:
        """Scores; `fade` in [0, 1] leads from the scores of the halved images to those of the images.

        parts: batches that lie one after the other in `images`; the deviation is taken within each.
        """
        size = images.shape[-1]
        hidden = self.from_rgb[str(size)](images)
        for level in reversed(doublings(8, size)):
            hidden = self.blocks[str(level)](hidden)
            if level == size and fade < 1:
                hidden = torch.lerp(self.from_rgb[str(size // 2)](downsample2x(images)), hidden, fade)
        maps = [minibatch_stddev(part, self.group_size) for part in hidden.chunk(parts)]
        return self.head(torch.cat(maps)).flatten().float()


def fade_images(images: Tensor, fade: float) -> Tensor:
    """Real images [B, C, H, W] with the detail that generated ones have at this point of a fade."""
    if fade == 1:
        return images
    return torch.lerp(upsample2x(downsample2x(images)), images, fade)


class ProGAN(GenerativeModel):
    """Progressively grown Wasserstein GAN with gradient penalty."""

    Config = ProGANConfig
    config: ProGANConfig
    ema_nets = ("generator",)

    def __init__(self, config: ProGANConfig, data: DataSpec):
        super().__init__(config, data)
        self.sizes = doublings(config.start_size, check_size(data.image_size, config.start_size))
        self.phases = (Phase("critic", ("critic",)), Phase("generator", ("generator",), every=config.critic_steps))
        self.simultaneous = config.simultaneous
        width = partial(channels, fmap_base=config.fmap_base, fmap_max=config.fmap_max)
        widths = {size: width(size) for size in doublings(4, data.image_size)}
        self.generator = Generator(config.latent_dim, widths, data.channels)
        self.critic = Critic(widths, data.channels, dense_width=width(2), group_size=config.group_size)

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """The same Adam for both networks."""
        adam = OptimizerConfig(lr=self.config.lr, betas=self.config.betas, eps=self.config.eps)
        return {phase.name: adam for phase in self.phases}

    def stages(self, num_images: int, batch_size: int) -> tuple[Stage, ...]:
        """Hold the first size, then fade in and hold each further one; the last hold takes what is left."""
        fade, hold = self.config.fade_images, self.config.hold_images
        growing = (len(self.sizes) - 1) * (fade + hold)
        if num_images <= growing:
            raise ValueError(
                f"{num_images} images are too few to grow from {self.sizes[0]} to {self.sizes[-1]} pixels: with "
                f"fade_images {fade} and hold_images {hold} it takes more than {growing}"
            )
        stages = []
        for size in self.sizes:
            batch = self.config.batch_sizes.get(size, batch_size)
            if size > self.sizes[0]:
                stages.append(Stage(f"{size} fade", fade, size, batch))
            stages.append(Stage(f"{size} hold", hold if size < self.sizes[-1] else num_images - growing, size, batch))
        return tuple(stages)

    def fade(self, progress: Progress) -> float:
        """How far the stage's size has faded in, in [0, 1]."""
        return progress.fraction if progress.stage.name.endswith("fade") else 1.0

    def lr_scale(self, phase: Phase, progress: Progress) -> float:
        """`lr_scales` at the stage's image size."""
        return self.config.lr_scales.get(progress.stage.image_size, 1.0)

    def training_step(
        self, batch: Batch, phase: str, progress: Progress, noise: Noise, scratch: dict[str, Any]
    ) -> StepOutput:
        """The losses at the stage's size and fade; each phase draws its own latents, as official."""
        size, fade = progress.stage.image_size, self.fade(progress)
        critic = partial(self.critic, fade=fade)
        latents = noise.normal(len(batch["image"]), self.config.latent_dim)
        if phase == "generator":
            fake = self.config.shown(self.generator(latents, size, fade), noise)
            return StepOutput({"adversarial": generator_loss(self.config.loss, critic(fake))})
        real = self.config.shown(fade_images(batch["image"], fade), noise)
        with torch.no_grad():
            fake = self.config.shown(self.generator(latents, size, fade), noise)
        # One pass of both: 1.06 times as fast a step at 16 px, nothing but rounding changes.
        real_score, fake_score = critic(torch.cat([real, fake.to(real.dtype)]), parts=2).chunk(2)
        losses = {
            "adversarial": discriminator_loss(self.config.loss, real_score, fake_score),
            **self.config.penalised(critic, real, fake, noise, self.config.penalty_target),
            "drift": self.config.drift_weight * real_score.square().mean(),
        }
        return StepOutput(losses, {"real_score": real_score.mean(), "fake_score": fake_score.mean()})

    def latent(self, num: int, generator: torch.Generator) -> Tensor:
        """Draws from N(0, 1), [num, latent_dim]."""
        return torch.randn(num, self.config.latent_dim, generator=generator)

    def generate(self, latent: Tensor, cond: Batch, progress: Progress) -> Tensor:
        """Images of the stage's size and fade."""
        return self.generator(latent, progress.stage.image_size, self.fade(progress)).clamp(-1, 1)

    def stage_stats(self, progress: Progress) -> dict[str, float]:
        """Image size and fade."""
        return {"resolution": float(progress.stage.image_size), "fade": self.fade(progress)}

    def proofs(self, context: ProofContext) -> list[Proof]:
        """SWD falls at every level of the pyramid at full size; generated pairs vary as real ones do (MS-SSIM)."""
        return swd_proofs(context.history, self.data.image_size) + variation_proofs(context.scores)


def swd_proofs(history: list[dict[str, Any]], size: int) -> list[Proof]:
    """The last snapshot at full size against the first; only these two share one protocol."""
    rows = [row for row in history if str(row.get("stage", "")).startswith(f"{size} ")]
    if len(rows) < 2:
        return []
    first, last = rows[0], rows[-1]
    keys = sorted(key for key in first.keys() & last.keys() if key.startswith("swd"))
    return [
        Proof(f"{key} falls while training at {size}x{size}", last[key], first[key], last[key] < first[key], "x1e3")
        for key in keys
    ]


def variation_proofs(scores: dict[str, float]) -> list[Proof]:
    """MS-SSIM of generated pairs against that of real pairs, which catches a collapse (Odena et al. 2017)."""
    if not {"ms_ssim", "ms_ssim_real"} <= scores.keys():
        return []
    gap = math.fabs(scores["ms_ssim"] - scores["ms_ssim_real"])
    claim = f"MS-SSIM of generated pairs within {MS_SSIM_TOLERANCE} of the reals'"
    return [Proof(claim, gap, MS_SSIM_TOLERANCE, gap < MS_SSIM_TOLERANCE)]
