"""Short trainings of any registered model on real shards, and how their states are compared."""

import io
import math
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, Prepared

from genmodels.config import TrainConfig
from genmodels.data.fields import DataSpec
from genmodels.data.loader import Loader
from genmodels.model import GenerativeModel, Progress, model_class, model_names
from genmodels.trainer import Hooks, Trainer

BATCH = 8
NUM_IMAGES = 192  # crosses every stage of the tiny settings
TRAIN = {"num_images": NUM_IMAGES, "batch_size": BATCH, "log_every": 24, "checkpoint_every": BATCH, "ema_rampup": 0.5}

every_model = pytest.mark.parametrize("name", model_names())


def build(name: str, spec: DataSpec, **settings) -> GenerativeModel:
    torch.manual_seed(0)
    return model_class(name)(model_class(name).Config(**{**TINY_MODELS.get(name, {}), **settings}), spec)


def make_trainer(
    name: str,
    data: Prepared,
    hooks: Hooks | None = None,
    seen: list | None = None,
    model: GenerativeModel | None = None,
    device: str = "cpu",
    **train,
) -> Trainer:
    """A trainer on real shards; `seen` gathers (image count, batch) of all that is read."""
    model = model or build(name, data.spec)
    config = TrainConfig(**{**TRAIN, **train})

    def open_loader(stage, num_images):
        rank, world_size = trainer.rank, trainer.world_size
        size, batch_size, seed = stage.image_size, stage.batch_size, config.seed
        loader = Loader(data.folder, model.batch_keys, size, batch_size, seed, num_images, rank, world_size)
        return loader if seen is None else Recorder(loader, seen)

    trainer = Trainer(model, config, open_loader, hooks, device)
    trainer.shards = data.folder
    return trainer


class Recorder:
    """A loader that keeps what it served."""

    def __init__(self, loader: Loader, seen: list):
        self.loader, self.seen = loader, seen

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.loader.close()

    def __next__(self):
        batch = next(self.loader)
        self.seen.append((self.loader.position, {key: value.clone() for key, value in batch.items()}))
        return batch


def through_disk(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint gives back: a copy that went through the safe reader."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Nested state as {path: tensor or number}."""
    if isinstance(value, dict):
        items = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(i), part) for i, part in enumerate(value)]
    else:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, part in items:
        flat |= leaves(part, f"{path}/{key}")
    return flat


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The paths at which two states are not bit-equal."""
    first, second = leaves(a), leaves(b)
    assert first.keys() == second.keys()

    def same(x, y):
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y

    return [path for path in first if not same(first[path], second[path])]


def stage_points(trainer: Trainer) -> tuple[list[int], list[int]]:
    """Image counts (at the end of each stage but the last, inside each stage), as whole batches reach them."""
    ends, inside, start = [], [], 0
    for i, stage in enumerate(trainer.stages):
        end = math.ceil(sum(s.num_images for s in trainer.stages[: i + 1]) / stage.batch_size) * stage.batch_size
        inside.append(start + (end - start) // (2 * stage.batch_size) * stage.batch_size)
        ends.append(end)
        start = end
    return ends[:-1], inside


def timeless(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def progress_at_end(model: GenerativeModel) -> Progress:
    return Progress(1, 4096, model.stages(4096, BATCH)[-1], 1.0)
