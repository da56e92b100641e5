"""The contract that every generative model fulfils, and the registry that finds them.

A model owns its networks, losses, optimiser settings and stages; it owns no loop. `genmodels.trainer`
turns the contract into training, `genmodels.export` into sampling. A new model is one file in
`genmodels/models/` and one line in `genmodels.models.MODELS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor, nn

from genmodels.data.fields import DataSpec
from genmodels.models import MODELS
from genmodels.text import nearest

Batch = dict[str, Tensor]


class Strict(BaseModel):
    """Base of every configuration section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would read true as 1."""
        if isinstance(value, bool) and not _takes_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("true and false are no value here")
        return value


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_bool(part) for part in get_args(annotation))


class OptimizerConfig(Strict):
    """Adam's settings for one phase (Kingma & Ba 2015)."""

    lr: float = Field(2e-4, gt=0, description="learning rate")
    betas: tuple[float, float] = Field((0.5, 0.999), description="decay rates of the two moments")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")


@dataclass(frozen=True)
class Phase:
    """One optimiser's update. Networks that it does not name are frozen while it runs."""

    name: str
    nets: tuple[str, ...]
    every: int = 1  # steps


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one image size and one global batch size; most models have one."""

    name: str
    num_images: int
    image_size: int
    batch_size: int
    phases: tuple[str, ...] | None = None  # which phases run in it; None: all of them


@dataclass(frozen=True)
class Progress:
    """Where training stands. Images shown are the clock; steps exist only for `Phase.every`."""

    step: int
    num_images: int
    stage: Stage
    fraction: float  # of the stage done, in [0, 1]


class StepOutput(NamedTuple):
    """What one phase of one step returns: scalars, all of them still on the device."""

    losses: dict[str, Tensor]  # weighted; their sum is minimised
    stats: dict[str, Tensor] = {}  # logged only


@dataclass(frozen=True)
class Metric:
    """The score that a model declares: runs of the model are ranked by it."""

    name: str  # a key of genmodels.metrics.evaluate's scores
    direction: Literal["min", "max"] = "min"

    def better(self, score: float, other: float | None) -> bool:
        """Whether `score` beats `other`; anything finite beats None."""
        if other is None:
            return score == score  # False for NaN
        return score < other if self.direction == "min" else score > other


@dataclass(frozen=True)
class Proof:
    """One piece of a model's own evidence: a claim, what was measured, and the baseline to beat."""

    claim: str
    measured: float
    baseline: float
    holds: bool
    unit: str = ""


class Noise:
    """Random draws that are a function of (seed, step, phase) alone, whatever the number of ranks.

    Every draw is made for the global batch; each rank keeps its own slice. So one rank and four see
    the same noise, and resuming needs no generator state.
    """

    def __init__(self, seed: int, step: int, phase: int, device: torch.device, rank: int = 0, world_size: int = 1):
        self._generator = torch.Generator(device)
        self._generator.manual_seed(mix_seed(seed, step, phase))
        self._device, self._rank, self._world_size = device, rank, world_size

    def normal(self, num: int, *shape: int) -> Tensor:
        """Draws from N(0, 1), [num, *shape], where num is this rank's share of the global batch."""
        return self._slice(torch.randn(num * self._world_size, *shape, generator=self._generator, device=self._device))

    def uniform(self, num: int, *shape: int) -> Tensor:
        """Draws from U[0, 1), [num, *shape]."""
        return self._slice(torch.rand(num * self._world_size, *shape, generator=self._generator, device=self._device))

    def integers(self, high: int, num: int, *shape: int) -> Tensor:
        """Draws from {0 .. high - 1}, int64 [num, *shape]."""
        shape = (num * self._world_size, *shape)
        return self._slice(torch.randint(high, shape, generator=self._generator, device=self._device))

    def _slice(self, draws: Tensor) -> Tensor:
        num = len(draws) // self._world_size
        return draws[self._rank * num : (self._rank + 1) * num]


def mix_seed(*parts: int) -> int:
    """One well-mixed 63-bit seed from several integers (splitmix64's finaliser, Steele et al. 2014)."""
    mixed = 0
    for part in parts:
        mixed = (mixed ^ (part & (2**64 - 1))) + 0x9E3779B97F4A7C15 & (2**64 - 1)
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
        mixed ^= mixed >> 31
    return mixed >> 1


@dataclass(frozen=True)
class ProofContext:
    """What a model's `proofs` and `pictures` may look at: real data, samples, and independent features."""

    train: Batch  # every key that the data set offers, images in [-1, 1]; from the training split
    test: Batch  # the same, held out; image_A[i] and image_B[i] show the same thing where `paired`
    paired: bool
    samples: Tensor  # [N, C, H, W], generated by the averaged networks under `condition(test)`
    features: Callable[[Tensor], Tensor]  # images -> [N, F], by a network trained on real data only; points as they are
    scores: dict[str, float]  # what genmodels.metrics.evaluate measured of the samples
    history: list[dict[str, Any]]  # one row a snapshot of the training, in order: num_images, stage, scores

    def halved(self, *names: str) -> list[Proof]:
        """That each of these scores is below half the untrained networks'; of those that were measured at both ends."""
        proofs = []
        for name in names:
            start, end = self.history[0].get(name) if self.history else None, self.scores.get(name)
            if start is not None and end is not None:
                claim = f"{name.upper()} of samples below half the untrained networks'"
                proofs.append(Proof(claim, end, 0.5 * start, end < 0.5 * start))
        return proofs


class GenerativeModel(nn.Module):
    """Base of all models. Children in `_modules` are the networks that phases and exports name."""

    name: ClassVar[str] = ""  # set by the registry
    Config: ClassVar[type[Strict]]
    phases: tuple[Phase, ...]  # may depend on the config, then set in __init__
    batch_keys: tuple[str, ...] = ("image",)
    output_key: str = "image"  # the data set's images that samples are compared with
    ema_nets: tuple[str, ...]  # the networks that sampling needs; averaged and exported
    proof_nets: tuple[str, ...] = ()  # exported besides, as they are, because the proofs look at them
    least_share: int = 1  # images of a batch that each rank needs: 2 where an image is set against another one
    rank_buffers: tuple[str, ...] = ()  # prefixes of buffers that differ between ranks (image pools)
    simultaneous: bool = False  # True: all phases' gradients first, then all optimiser steps
    channels_last: bool = True  # the memory layout of convolutions; instance normalisation has no fast path in it
    metric: Metric = Metric("swd")

    def __init__(self, config: Strict, data: DataSpec):
        super().__init__()
        self.config, self.data = config, data

    def check_attributes(self, attributes: NDArray[np.float32]) -> None:
        """ValueError where the training images' attributes [N, A] of 0 and 1 are not as the settings say."""

    def place(self, device: torch.device | str) -> Self:
        """Moves the networks to the device, their convolutions into the layout that is fastest there."""
        if self.channels_last:  # a step of DCGAN, VAE, ProGAN from 64 px: 1.1 to 1.2 times as fast on a CPU
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self.to(device)

    # Training

    def optimizers(self) -> dict[str, OptimizerConfig]:
        """Adam's settings by phase name."""
        raise NotImplementedError

    def stages(self, num_images: int, batch_size: int) -> tuple[Stage, ...]:
        """The schedule of a training of `num_images` images: one stage unless the model grows."""
        return (Stage("train", num_images, self.data.image_size, batch_size),)

    def lr_scale(self, phase: Phase, progress: Progress) -> float:
        """Factor on the phase's learning rate at this point of training."""
        return 1.0

    def training_step(
        self, batch: Batch, phase: str, progress: Progress, noise: Noise, scratch: dict[str, Any]
    ) -> StepOutput:
        """Losses of one phase. `scratch` lives one step: what a phase leaves there, the next may reuse."""
        raise NotImplementedError

    def stage_stats(self, progress: Progress) -> dict[str, float]:
        """What of the schedule belongs in the curves; host numbers (resolution, fade)."""
        return {}

    # Sampling

    def condition(self, batch: Batch) -> Batch:
        """What `generate` is told besides latents, [N, ...] each, made of real data; empty if it needs nothing."""
        return {}

    def encode_condition(self, **given: Any) -> Batch:
        """A condition as the user states it (caption="a red cat", attributes="Young=1") as `generate` takes it.

        ValueError names what the model does not take, and what it does.
        """
        raise ValueError(f"{self.name} takes no {', '.join(given)}; it samples without a condition")

    def controls(self) -> dict[str, tuple[str, ...]]:
        """What `encode_condition` takes, by name, with the choices; empty choices where anything of its kind goes."""
        return {}

    def latent(self, num: int, generator: torch.Generator) -> Tensor:
        """Latents [num, ...] on the CPU: what sampling, interpolation and traversal start from."""
        raise NotImplementedError

    def generate(self, latent: Tensor, cond: Batch, progress: Progress) -> Tensor:
        """Images [num, C, H, W] in [-1, 1], of the stage that `progress` names."""
        raise NotImplementedError

    def traversal(self, latent: Tensor, steps: int) -> Tensor:
        """Rows of latents in which one coordinate alone moves, [rows, steps, *latent.shape], from one latent.

        Here each of the first eight coordinates, from -2 to 2, or as far as latents are drawn.
        """
        rows = min(8, latent.numel())
        draws = self.latent(1024, torch.Generator().manual_seed(0)).flatten(1)
        low, high = draws.amin(0).clamp(min=-2).tolist(), draws.amax(0).clamp(max=2).tolist()
        moved = latent.flatten().repeat(rows, steps, 1)
        for row in range(rows):
            moved[row, :, row] = torch.linspace(low[row], high[row], steps)
        return moved.view(rows, steps, *latent.shape)

    def present(self, images: Tensor, cond: Batch) -> Tensor:
        """Generated images as a person should see them, [num, C, H, W']: a translation beside its source, say."""
        return images

    # Evidence

    def proofs(self, context: ProofContext) -> list[Proof]:
        """The model's own evidence on held-out data, each beside its baseline (MODELS.md)."""
        return []

    def pictures(self, context: ProofContext) -> dict[str, Tensor]:
        """Pictures that belong to the evidence, by name: [rows, columns, C, H, W] in [-1, 1]."""
        return {}


def model_names() -> list[str]:
    """Every registered model, in the order of the registry."""
    return list(MODELS)


def model_class(name: str) -> type[GenerativeModel]:
    """The class registered under `name`; ValueError names the nearest one."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}{nearest(name, MODELS)}; choices: {', '.join(MODELS)}")
    module, _, attribute = MODELS[name].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    cls.name = name
    return cls
