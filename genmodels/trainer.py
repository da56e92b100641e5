"""The one training loop: phases, gradient averaging, averaged weights, stages, exact resume.

A training is a pure function of (configuration, data, number of ranks). Images shown are its clock: stage,
fade, sample order and noise follow from `num_images` and `step` alone, so a checkpoint needs no generator
or loader state. Nothing in a step waits for the device: losses are read at log intervals, and an update with
a non-finite loss or gradient is skipped by a flag on the device, then reported at the next log.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn

from genmodels import distributed
from genmodels.adam import Adam
from genmodels.config import TrainConfig
from genmodels.model import Batch, GenerativeModel, Noise, Phase, Progress, Stage

Row = dict[str, Any]
OpenLoader = Callable[[Stage, int], AbstractContextManager[Iterator[Batch]]]  # (stage, images shown before)


NOTHING, SAVE, STOP = range(3)  # what a running training may be asked for


class NonFiniteError(RuntimeError):
    """A loss, a statistic or a gradient became NaN or infinite; no weight was touched by it."""


@dataclass
class Hooks:
    """What the surroundings do with a training's events. `save` and `log` run on every rank's loop, act on rank 0."""

    log: Callable[[Row], None] = lambda row: None
    save: Callable[[int, dict[str, Any]], None] = lambda num_images, state: None
    snapshot: Callable[[GenerativeModel, Progress], None] = lambda model, progress: None
    begun: Callable[[], None] = lambda: None  # after the first step: what that need not wait for


@dataclass
class _Interval:
    """Device scalars gathered since the last log, by name."""

    values: dict[str, list[Tensor]] = field(default_factory=dict)
    num_images: int = 0
    start: float = field(default_factory=time.perf_counter)

    def add(self, name: str, value: Tensor) -> None:
        self.values.setdefault(name, []).append(value.detach())


class Trainer:
    """Trains one model. Every rank makes one, with the same model weights, configuration and hooks."""

    def __init__(
        self,
        model: GenerativeModel,
        config: TrainConfig,
        open_loader: OpenLoader,
        hooks: Hooks | None = None,
        device: torch.device | str = "cpu",
    ):
        self.device = torch.device(device)
        self.model, self.config, self.open_loader = model.place(self.device), config, open_loader
        self.hooks = hooks or Hooks()
        self.rank, self.world_size = distributed.world()
        self.stages = model.stages(config.num_images, config.batch_size)
        check_stages(self.stages, self.world_size, model.least_share)
        distributed.broadcast(list(model.state_dict().values()))
        self.ema = averaged_copy(model)
        self.parameters = {phase.name: list(_parameters(model, phase.nets)) for phase in model.phases}
        self.optimizers = self._new_optimizers()
        self.autocast_dtype = torch.bfloat16 if use_bf16(config.precision, self.device) else None
        self.step, self.num_images, self.stage_index = 0, 0, 0
        self._interval = _Interval()
        self._vote, self._wishes = distributed.Vote(), SimpleQueue[int]()
        self.stopped = False  # before the end, as asked
        self._halt: int | None = None

    def ask(self, wish: int) -> None:
        """SAVE: a checkpoint after the next steps; STOP: and the end of `run`. For other threads, on any rank."""
        self._wishes.put(wish)

    @property
    def total_images(self) -> int:
        """Images of all stages; the last batch may go past it."""
        return sum(stage.num_images for stage in self.stages)

    def run(self, until: int | None = None) -> None:
        """Trains from where the state stands to the end, or until it is asked to stop.

        With `until`, also stops, after a snapshot and a checkpoint, once so many images have been shown in all.
        """
        self._halt = until
        if self.num_images == 0:
            self.hooks.snapshot(self.ema, self.progress())  # the untrained networks: the scale's lower end
        while self.num_images < self.total_images and not self.stopped:
            self._enter_stage()
            end = self._stage_start(self.stage_index + 1)
            with self.open_loader(self.stages[self.stage_index], self.num_images) as batches:
                self._interval.start = time.perf_counter()
                while self.num_images < end and not self.stopped:
                    self.train_step(self._to_device(next(batches)))
                    self._after_step()
        self._vote.close()

    def progress(self) -> Progress:
        """Where training stands, as the model sees it."""
        stage = self.stages[self.stage_index]
        done = (self.num_images - self._stage_start(self.stage_index)) / stage.num_images
        return Progress(self.step, self.num_images, stage, min(max(done, 0.0), 1.0))

    def train_step(self, batch: Batch) -> None:
        """All phases of one step on this rank's share of the global batch."""
        progress = self.progress()
        scratch: dict[str, Any] = {}
        active = [phase for phase in self.model.phases if _runs(phase, progress)]
        self.model.train()
        for phase in active:
            self._gradients(phase, batch, progress, scratch, last=phase is active[-1])
            if not self.model.simultaneous:
                self.optimizers[phase.name].step()
        if self.model.simultaneous:
            for phase in active:
                self.optimizers[phase.name].step()
        self.step += 1
        self.num_images += progress.stage.batch_size
        self._interval.num_images += progress.stage.batch_size
        self._update_ema(progress.stage.batch_size)

    def state(self) -> dict[str, Any]:
        """Everything that bit-exact resume needs; a collective call, complete on rank 0."""
        # On the host: a tensor of another rank's GPU would be read back to a GPU of that number, if there is one.
        own = {name: buffer.cpu() for name, buffer in self.model.named_buffers() if self._is_rank_buffer(name)}
        return {
            "model": self.model.state_dict(),
            "ema": {name: getattr(self.ema, name).state_dict() for name in self.model.ema_nets},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "ranks": distributed.gather(own),
            "step": self.step,
            "num_images": self.num_images,
            "stage_index": self.stage_index,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state, also one saved by another number of ranks."""
        self.model.load_state_dict(state["model"])
        for name, values in state["ema"].items():
            getattr(self.ema, name).load_state_dict(values)
        for name, values in state["optimizers"].items():
            self.optimizers[name].load_state_dict(values)
        if state["ranks"]:
            self.model.load_state_dict(state["ranks"][self.rank % len(state["ranks"])], strict=False)
        self.step, self.num_images, self.stage_index = state["step"], state["num_images"], state["stage_index"]

    # One step

    def _gradients(self, phase: Phase, batch: Batch, progress: Progress, scratch: dict[str, Any], last: bool) -> None:
        """Backward pass of one phase: its gradients averaged over ranks, its skip flag set; buffers with the last."""
        parameters = self.parameters[phase.name]
        self.model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
            parameter.grad = None
        noise = Noise(
            self.config.seed, progress.step, self.model.phases.index(phase), self.device, self.rank, self.world_size
        )
        enabled = self.autocast_dtype is not None
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=enabled):
            losses, stats = self.model.training_step(batch, phase.name, progress, noise, scratch)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        total.backward()

        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        check = total.detach()
        # Buffers in the last phase alone: one that comes later may still need them for what it kept in `scratch`.
        distributed.average([*gradients, check, *(self._shared_buffers() if last else ())])
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        optimizer = self.optimizers[phase.name]
        optimizer.skip = (~torch.isfinite(norm + check)).float()
        optimizer.lr = optimizer.config.lr * self.model.lr_scale(phase, progress)
        for name, value in {**losses, **stats, "gradient_norm": norm}.items():
            self._interval.add(f"{phase.name}/{name}", value)

    def _update_ema(self, batch_size: int) -> None:
        half_life = self.config.ema_half_life
        if self.config.ema_rampup:
            half_life = min(half_life, self.num_images * self.config.ema_rampup)
        decay = 0.5 ** (batch_size / half_life) if half_life else 0.0
        with torch.no_grad():
            for name in self.model.ema_nets:
                averaged, live = getattr(self.ema, name), getattr(self.model, name)
                torch._foreach_lerp_(list(averaged.parameters()), list(live.parameters()), 1 - decay)
                if buffers := list(live.buffers()):
                    torch._foreach_copy_(list(averaged.buffers()), buffers)

    def _to_device(self, batch: Batch) -> Batch:
        moved = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        return {key: to_float(value) if value.dtype == torch.uint8 else value for key, value in moved.items()}

    # Between steps

    def _enter_stage(self) -> None:
        index = next(i for i in range(len(self.stages)) if self.num_images < self._stage_start(i + 1))
        if index != self.stage_index:
            self.optimizers = self._new_optimizers()  # fresh Adam moments (Karras et al. 2018, appendix A)
            self.stage_index = index

    def _after_step(self) -> None:
        config, done = self.config, self.num_images >= self.total_images
        stage_done = self.num_images >= self._stage_start(self.stage_index + 1)
        wish = self._vote.cast(NOTHING if self._wishes.empty() else self._wishes.get())
        halt = self._halt is not None and self.num_images >= self._halt
        self.stopped = (wish == STOP or halt) and not done
        save = done or wish or halt or self._crossed(config.checkpoint_every)
        snapshot = stage_done or halt or self._crossed(config.snapshot_every)
        log = save or snapshot or self._crossed(config.log_every)
        if log:
            self._log()  # before a checkpoint too, so that a resumed training logs the same intervals
        if self.step == 1:
            before = time.perf_counter()
            self.hooks.begun()
            self._interval.start += time.perf_counter() - before
        if snapshot:
            self.hooks.snapshot(self.ema, self.progress())
        if save:
            distributed.assert_equal(list(self.model.parameters()))
            self.hooks.save(self.num_images, self.state())
        if log:
            self._interval.start = time.perf_counter()  # what hooks take is no part of the rate

    def _log(self) -> None:
        """Reads the interval's scalars from the device, the only wait for it, and hands on their means."""
        names = list(self._interval.values)
        if not names:
            return  # no phase ran
        sums = torch.stack([torch.stack([v.float() for v in self._interval.values[name]]).sum() for name in names])
        distributed.average([sums])
        means = {
            name: value / len(self._interval.values[name]) for name, value in zip(names, sums.tolist(), strict=True)
        }
        self._refuse_non_finite(means)
        progress, interval, self._interval = self.progress(), self._interval, _Interval()
        seconds = self._interval.start - interval.start
        self.hooks.log(
            {
                "num_images": self.num_images,
                "step": self.step,
                "stage": progress.stage.name,
                **means,
                **{f"stage/{name}": value for name, value in self.model.stage_stats(progress).items()},
                "images_per_second": interval.num_images / seconds,
            }
        )

    def _refuse_non_finite(self, means: dict[str, float]) -> None:
        for name, value in means.items():
            if not math.isfinite(value):
                phase, _, term = name.partition("/")
                raise NonFiniteError(
                    f"{self.model.name}: phase {phase!r}, term {term!r} became {value} before image {self.num_images};"
                    " the weights were left as they were (try a lower learning rate or precision=fp32)"
                )

    # Small things

    def _new_optimizers(self) -> dict[str, Adam]:
        return {name: Adam(self.parameters[name], config) for name, config in self.model.optimizers().items()}

    def _stage_start(self, index: int) -> int:
        return sum(stage.num_images for stage in self.stages[:index])

    def _crossed(self, every: int) -> bool:
        """Whether the last step passed a multiple of `every` images."""
        return self.num_images // every > (self.num_images - self.stages[self.stage_index].batch_size) // every

    def _shared_buffers(self) -> Iterator[Tensor]:
        """Floating buffers (batch statistics), which all ranks keep in common; a phase may pass through any network."""
        if self.world_size > 1:
            for name, buffer in self.model.named_buffers():
                if buffer.is_floating_point() and not self._is_rank_buffer(name):
                    yield buffer

    def _is_rank_buffer(self, name: str) -> bool:
        return bool(self.model.rank_buffers) and name.startswith(self.model.rank_buffers)


def check_stages(stages: Iterable[Stage], num_workers: int, least_share: int = 1) -> None:
    """ValueError where a stage's global batch does not divide by the number of workers, or is too small for them."""
    for stage in stages:
        what = f"batch_size {stage.batch_size} of stage {stage.name!r}"
        if stage.batch_size % max(num_workers, 1):
            raise ValueError(f"{what} does not divide by {num_workers} workers")
        if stage.batch_size < least_share * max(num_workers, 1):
            raise ValueError(f"{what} is too small: this model needs {least_share} images a worker")


def averaged_copy(model: GenerativeModel) -> GenerativeModel:
    """The same model with its own copies of the averaged networks, in evaluation mode; the rest is shared."""
    other = copy.copy(model)
    other._modules = dict(model._modules)
    for name in model.ema_nets:
        other._modules[name] = copy.deepcopy(getattr(model, name)).requires_grad_(False).eval()
    return other


def to_float(images: Tensor) -> Tensor:
    """uint8 images [B, C, H, W] -> fp32 in [-1, 1]."""
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether networks run in bf16: as asked, or, with 'auto', on GPUs that have it (older ones emulate it slowly)."""
    if precision != "auto":
        return precision == "bf16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _parameters(model: nn.Module, nets: Iterable[str]) -> Iterator[nn.Parameter]:
    for net in nets:
        yield from getattr(model, net).parameters()


def _runs(phase: Phase, progress: Progress) -> bool:
    return progress.step % phase.every == 0 and (progress.stage.phases is None or phase.name in progress.stage.phases)
