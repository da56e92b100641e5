"""A model small enough to work out by hand, and trainings of it without data."""

from contextlib import nullcontext
from itertools import repeat

import torch
from torch import nn

from genmodels.config import TrainConfig
from genmodels.data.fields import DataSpec
from genmodels.model import GenerativeModel, OptimizerConfig, Phase, StepOutput, Strict
from genmodels.trainer import Trainer

SPEC = DataSpec("toy", 1, 4, (4,), num_train=64, num_test=0)
BETAS = (0.9, 0.99)
LR = 0.1


class Empty(Strict):
    pass


class Toy(GenerativeModel):
    """Two networks of one number each, a and b, with known gradients."""

    Config = Empty
    name = "toy"
    phases = (Phase("one", ("a",)), Phase("two", ("b",)))
    ema_nets = ("a",)

    def __init__(self, sizes=(), gradient=None):
        super().__init__(Empty(), SPEC)
        self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.a.weight), nn.init.ones_(self.b.weight)
        self.sizes = sizes
        self.gradient = gradient or (lambda phase, progress, batch, noise: 1.0)
        self.calls: list[tuple[str, int]] = []
        self.seen: list[tuple[float, float]] = []

    def stages(self, num_images, batch_size):
        return self.sizes or super().stages(num_images, batch_size)

    def optimizers(self):
        return {phase.name: OptimizerConfig(lr=LR, betas=BETAS) for phase in self.phases}

    def training_step(self, batch, phase, progress, noise, scratch):
        self.calls.append((phase, progress.step))
        self.seen.append((self.a.weight.item(), self.b.weight.item()))
        weight = getattr(self, {"one": "a", "two": "b"}[phase]).weight.sum()
        return StepOutput({"loss": weight * self.gradient(phase, progress, batch, noise)}, {"step": weight * 0 + 1})

    def latent(self, num, generator):
        return torch.rand(num, 1, generator=generator)

    def generate(self, latent, cond, progress):
        return self.a(latent).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


def no_data(stage, num_images):
    return nullcontext(repeat({"image": torch.zeros(stage.batch_size, 1, 4, 4)}))


def make(model=None, hooks=None, **train) -> Trainer:
    values = {"num_images": 64, "batch_size": 8, "log_every": 8, "ema_rampup": 0.0, "precision": "fp32", **train}
    return Trainer(model or Toy(), TrainConfig(**values), no_data, hooks)
