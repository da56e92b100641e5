"""Text to image, GAN-INT-CLS (Reed et al. 2016): a DCGAN told by a caption, and judged on whether it obeyed.

    min_D  -log D(x, t) - 1/2 log(1 - D(x, t')) - 1/2 log(1 - D(G(z, t), t)),   t' a caption of another image
    min_G  -log D(G(z, t), t) - log D(G(z, u), u),   u = beta t_1 + (1 - beta) t_2

t is a text encoder's embedding of a caption. The encoder is trained first, from scratch, to find images' captions
and captions' images (a joint embedding, as the paper's, Reed et al. 2016, CVPR); it is frozen for the GAN.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from genmodels.adversarial import BatchNormConfig, normalise
from genmodels.convnets import Decoder, Encoder, base_size, init_dcgan
from genmodels.data.captions import PADDING, UNKNOWN, alike, encode, words
from genmodels.data.fields import DataSpec
from genmodels.losses import AdversarialLoss, contrastive_loss, fake_loss, generator_loss, real_loss
from genmodels.metrics.matching import r_precision, train_matcher
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
from genmodels.text import check_given, nearest


class Text2ImageConfig(BatchNormConfig):
    """Settings of GAN-INT-CLS; the defaults are the paper's, for 64x64 images, but for the text encoder's sizes."""

    latent_dim: int = Field(100, ge=1, description="dimensions of z")
    width: int = Field(128, ge=1, description="generator's channels at half the image size; doubled towards 4x4")
    discriminator_width: int = Field(64, ge=1, description="discriminator's channels at half the image size")
    text_dim: int = Field(128, ge=1, description="the caption's embedding as generator and discriminator project it")
    captions: Literal["draw", "average"] = Field(
        "draw", description="of an image's captions: one drawn a step, or their embeddings' average"
    )
    wrong: Literal["caption", "class"] = Field(
        "caption", description="a caption t' is wrong for an image of other captions; class: and of another class"
    )
    interpolation: float | None = Field(0.5, gt=0, lt=1, description="beta of the INT term; null: without it")
    lr: float = Field(2e-4, gt=0, description="Adam's learning rate, generator and discriminator")
    beta1: float = Field(0.5, ge=0, lt=1, description="Adam's first decay rate, generator and discriminator")
    matching_share: float = Field(0.2, gt=0, lt=1, description="of the training, in images: the text encoder's")
    matching_lr: float = Field(1e-3, gt=0, description="Adam's learning rate for the text encoder")
    matching_width: int = Field(32, ge=1, description="channels of the image encoder at half the image size")
    embedding_dim: int = Field(128, ge=1, description="dimensions of the embeddings of words and captions")
    temperature: float = Field(0.1, gt=0, description="of the matching loss")
    word_dropout: float = Field(0.1, ge=0, lt=1, description="share of words masked in matching, as unknown ones are")


class TextEncoder(nn.Module):
    """Tokens int64 [..., L] -> embeddings [..., E] of mean square 1: words, a convolution over them, their mean."""

    def __init__(self, num_tokens: int, dim: int):
        super().__init__()
        self.words = nn.Embedding(num_tokens, dim, padding_idx=PADDING)
        self.convolution = nn.Conv1d(dim, dim, 3, padding=1)
        self.head = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """A padded caption's embedding does not depend on its padding."""
        flat = tokens.reshape(-1, tokens.shape[-1])
        present = (flat != PADDING)[:, None]
        maps = F.leaky_relu(self.convolution(self.words(flat).transpose(1, 2)), 0.2) * present
        embeddings = self.head(maps.sum(2) / present.sum(2).clamp(min=1))
        return _of_unit_mean_square(embeddings.float()).view(*tokens.shape[:-1], -1)


def _of_unit_mean_square(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings, dim=1) * math.sqrt(embeddings.shape[1])


class Generator(nn.Module):
    """z [B, Z] and text [B, E] -> images [B, C, S, S] in [-1, 1]."""

    def __init__(self, config: Text2ImageConfig, data: DataSpec):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(config.embedding_dim, config.text_dim), nn.LeakyReLU(0.2))
        self.decoder = Decoder(config.latent_dim + config.text_dim, data.channels, data.image_size, config.width)

    def forward(self, latents: Tensor, text: Tensor) -> Tensor:
        """The tanh of the decoder's output."""
        return torch.tanh(self.decoder(torch.cat([latents, self.project(text)], 1)))


class Discriminator(nn.Module):
    """Images [B, C, S, S] and text [B, E] -> logits [B, 1]; the text joins at the smallest map, at every place."""

    def __init__(self, config: Text2ImageConfig, data: DataSpec):
        super().__init__()
        side, doublings = base_size(data.image_size)
        norm, width = config.encoder_norm, config.discriminator_width
        top = width * 2 ** (doublings - 1)
        self.convolutions = Encoder(data.channels, data.image_size, width, 1, norm).convolutions
        self.project = nn.Sequential(nn.Linear(config.embedding_dim, config.text_dim), nn.LeakyReLU(0.2))
        after = [nn.BatchNorm2d(top), nn.LeakyReLU(0.2)] if norm == "batch" else [nn.LeakyReLU(0.2)]
        self.join = nn.Sequential(nn.Conv2d(top + config.text_dim, top, 1, bias=norm == "none"), *after)
        self.head = nn.Conv2d(top, 1, side)

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """D(x, t) before the sigmoid."""
        return self.judge(self.convolutions(images), text)

    def judge(self, maps: Tensor, text: Tensor) -> Tensor:
        """As `forward`, of images that went through the convolutions already."""
        replicated = self.project(text)[:, :, None, None].expand(-1, -1, *maps.shape[2:])
        return self.head(self.join(torch.cat([maps, replicated], 1))).flatten(1)


def discriminator_losses(
    kind: AdversarialLoss, right: Tensor, wrong: Tensor, fake: Tensor, is_wrong: Tensor
) -> dict[str, Tensor]:
    """The three terms of GAN-CLS on logits [B, 1] (Reed et al. 2016, algorithm 1), 1 : 1/2 : 1/2.

    is_wrong: bool [B]; pairs of `wrong` where it is False match by chance and do not count.
    """
    counted = is_wrong.to(wrong.dtype)
    mismatched = (fake_loss(kind, wrong).flatten() * counted).sum() / counted.sum().clamp(min=1)
    real, generated = real_loss(kind, right).mean(), fake_loss(kind, fake).mean()
    return {"real": real, "mismatched": 0.5 * mismatched, "fake": 0.5 * generated}


class Text2Image(GenerativeModel):
    """Text encoder and image encoder, trained first; generator and discriminator on the frozen embeddings."""

    Config = Text2ImageConfig
    phases = (
        Phase("matching", ("text_encoder", "image_encoder")),
        Phase("discriminator", ("discriminator",)),
        Phase("generator", ("generator",)),
    )
    ema_nets = ("text_encoder", "generator")
    least_share = 2  # a wrong caption is another image's
    proof_nets = ("discriminator",)

    def __init__(self, config: Text2ImageConfig, data: DataSpec):
        super().__init__(config, data)
        self.config: Text2ImageConfig = config
        if config.wrong == "class" and not data.classes:
            raise ValueError(f"wrong 'class' of {self.name}: data set {data.name} has no classes; choices: caption")
        self.batch_keys = ("image", "caption", *(["label"] if config.wrong == "class" else []))
        self.text_encoder = TextEncoder(len(data.vocabulary) + 2, config.embedding_dim)
        self.image_encoder = Encoder(data.channels, data.image_size, config.matching_width, config.embedding_dim)
        self.generator = Generator(config, data).apply(init_dcgan)
        self.discriminator = Discriminator(config, data).apply(init_dcgan)
        normalise(config.discriminator_norm, self.discriminator)

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Adam, whose beta1 is 0.5 in the matching too."""
        adversary = OptimizerConfig(lr=self.config.lr, betas=(self.config.beta1, 0.999))
        matching = OptimizerConfig(lr=self.config.matching_lr)
        return {"matching": matching, "discriminator": adversary, "generator": adversary}

    def stages(self, num_images: int, batch_size: int) -> tuple[Stage, ...]:
        """The text encoder's training, then the GAN's."""
        first, size = max(1, round(self.config.matching_share * num_images)), self.data.image_size
        return (
            Stage("matching", first, size, batch_size, ("matching",)),
            Stage("adversarial", max(1, num_images - first), size, batch_size, ("discriminator", "generator")),
        )

    def training_step(
        self, batch: Batch, phase: str, progress: Progress, noise: Noise, scratch: dict[str, Any]
    ) -> StepOutput:
        """The loss of one of the three phases."""
        if phase == "matching":
            return self._matching_step(batch, noise)
        with torch.no_grad():
            text = self._embedded(batch["caption"], noise)
        latents = noise.normal(len(text), self.config.latent_dim)
        if phase == "discriminator":
            return self._discriminator_step(batch, text, latents, noise)
        return self._generator_step(text, latents, noise)

    def _matching_step(self, batch: Batch, noise: Noise) -> StepOutput:
        captions = batch["caption"]
        masked = (noise.uniform(*captions.shape) < self.config.word_dropout) & (captions != PADDING)
        text = self._embedded(captions.masked_fill(masked, UNKNOWN), noise)
        loss = contrastive_loss(self.image_encoder(batch["image"]), text, self._alike(batch), self.config.temperature)
        return StepOutput({"contrastive": loss})

    def _discriminator_step(self, batch: Batch, text: Tensor, latents: Tensor, noise: Noise) -> StepOutput:
        real, wrong = self.config.shown(batch["image"], noise), text.roll(1, 0)  # batches come shuffled
        maps, is_wrong = self.discriminator.convolutions(real), ~self._alike(batch).roll(1, 1).diagonal()
        with torch.no_grad():
            fake = self.config.shown(self.generator(latents, text), noise)
        right_logits, wrong_logits = self.discriminator.judge(maps, text), self.discriminator.judge(maps, wrong)
        logits = right_logits, wrong_logits, self.discriminator(fake, text)
        losses = discriminator_losses(self.config.loss, *logits, is_wrong)
        losses |= self.config.penalised(lambda images: self.discriminator(images, text), real, fake, noise)
        return StepOutput(losses, {"right_over_wrong": (right_logits > wrong_logits).float().mean()})

    def _generator_step(self, text: Tensor, latents: Tensor, noise: Noise) -> StepOutput:
        texts = {"adversarial": text}
        if self.config.interpolation is not None:
            texts["interpolated"] = torch.lerp(text.roll(1, 0), text, self.config.interpolation)
        losses = {}
        for name, told in texts.items():
            fake = self.config.shown(self.generator(latents, told), noise)
            losses[name] = generator_loss(self.config.loss, self.discriminator(fake, told))
        return StepOutput(losses)

    def _embedded(self, captions: Tensor, noise: Noise) -> Tensor:
        """Embeddings [B, E] of captions [B, K, L]: of one drawn, or the average of all."""
        if self.config.captions == "average":
            return _of_unit_mean_square(self.text_encoder(captions).mean(1))
        drawn = noise.integers(captions.shape[1], len(captions))
        return self.text_encoder(captions[torch.arange(len(captions), device=captions.device), drawn])

    def _alike(self, batch: Batch) -> Tensor:
        """Bool [B, B]: whose captions are right for each other's images."""
        same = alike(batch["caption"])
        return same | (batch["label"][:, None] == batch["label"]) if self.config.wrong == "class" else same

    # Sampling

    def condition(self, batch: Batch) -> Batch:
        """The first caption's tokens."""
        return {"caption": batch["caption"][:, 0]}

    def controls(self) -> dict[str, tuple[str, ...]]:
        """What to show."""
        return {"caption": ()}

    def encode_condition(self, **given: Any) -> Batch:
        """caption=["a red cat", ...]: tokens; a word never seen in training counts as unknown."""
        check_given(self.name, given, required=("caption",))
        vocabulary = self.data.vocabulary
        for caption in given["caption"]:
            if not set(words(caption)) & set(vocabulary):
                guesses = "".join(nearest(word, vocabulary) for word in words(caption))
                raise ValueError(
                    f"caption {caption!r} of {self.name}: none of its words is among the {len(vocabulary)} known"
                    f"{guesses}; such as: {', '.join(vocabulary[:12])}"
                )
        return {"caption": torch.from_numpy(encode(given["caption"], vocabulary, self.data.num_words))}

    def latent(self, num: int, generator: torch.Generator) -> Tensor:
        """N(0, I), [num, Z]."""
        return torch.randn(num, self.config.latent_dim, generator=generator)

    def generate(self, latent: Tensor, cond: Batch, progress: Progress) -> Tensor:
        """G(z, t) of the captions' tokens [num, L]."""
        return self.generator(latent, self.text_encoder(cond["caption"]))

    # Evidence

    def proofs(self, context: ProofContext) -> list[Proof]:
        """What an independent matcher reads in the samples; whether D tells right captions from wrong ones."""
        images, captions = context.test["image"], context.test["caption"][:, 0]
        matcher = train_matcher(context.train["image"], context.train["caption"], len(self.data.vocabulary) + 2)
        fake, chance = r_precision(matcher, context.samples, captions)
        real, _ = r_precision(matcher, images, captions)
        right, chosen = self._right_over_wrong(images, captions)
        by_chance = 0.5 + 1 / math.sqrt(chosen)  # two standard deviations of as many coins above a half
        claim = f"R-precision of samples, 1 right of {round(1 / chance)} captions,"
        return [
            Proof(f"{claim} above ten times chance", fake, min(10 * chance, 0.5), fake > min(10 * chance, 0.5)),
            Proof(f"{claim} at least half the held-out images'", fake, 0.5 * real, fake >= 0.5 * real),
            Proof(
                "D(x, right caption) > D(x, wrong caption) on held-out images, more often than by chance",
                right,
                by_chance,
                right > by_chance,
                "share",
            ),
        ]

    @torch.no_grad()
    def _right_over_wrong(self, images: Tensor, captions: Tensor) -> tuple[float, int]:
        """Share of held-out images, and how many; the wrong caption is the next image's, where it differs."""
        text, above = self.text_encoder(captions), []
        for x, right, wrong in zip(images.split(256), text.split(256), text.roll(1, 0).split(256), strict=True):
            above.append(self.discriminator(x, right) > self.discriminator(x, wrong))
        differs = (captions != captions.roll(1, 0)).any(1)
        return torch.cat(above).flatten()[differs].float().mean().item(), max(1, int(differs.sum()))

    @torch.no_grad()
    def pictures(self, context: ProofContext) -> dict[str, Tensor]:
        """A row a held-out caption, none of them among the training captions looked at: its real image, 7 samples."""
        held_out, seen = context.test["caption"][:, 0], context.train["caption"].flatten(0, 1).unique(dim=0)
        rows = [i for i, tokens in enumerate(held_out) if not (seen == tokens).all(1).any()][:8]
        latents = self.latent(7, torch.Generator().manual_seed(0)).to(held_out.device)
        shown = []
        for row in rows:
            text = self.text_encoder(held_out[row : row + 1]).expand(7, -1)
            shown.append(torch.cat([context.test["image"][row : row + 1], self.generator(latents, text)]))
        return {"unseen_captions": torch.stack(shown)} if shown else {}
