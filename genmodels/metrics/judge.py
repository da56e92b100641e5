"""Scores a sampler against held-out images, always by the protocol that the configuration states."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genmodels.config import EvaluationConfig, RunConfig
from genmodels.data.cache import ShardCache
from genmodels.data.fields import DataSpec
from genmodels.data.images import SMALLEST
from genmodels.data.loader import read_split
from genmodels.data.reader import ShardReader
from genmodels.export import Sampler
from genmodels.files import exclusive, write_atomic
from genmodels.metrics.evaluate import Protocol, evaluate
from genmodels.metrics.features import FeatureNetwork, load_extractor, resized, save_extractor, train_extractor
from genmodels.metrics.supplied import SuppliedNetwork
from genmodels.model import Batch, GenerativeModel
from genmodels.trainer import to_float

EXTRACTOR_SIZE = 32  # the feature network sees the smallest level of the pyramid that is at least this


class Judge:
    """Holds the held-out images and the feature network of one data set."""

    def __init__(
        self,
        shards: Path,
        spec: DataSpec,
        config: RunConfig,
        extractor: Path,
        device: torch.device | str = "cpu",
        cache: ShardCache | None = None,
    ):
        self.shards, self.spec, self.config, self.device = shards, spec, config, torch.device(device)
        self.cache = cache
        self.extractor = ensure_extractor(extractor, shards, spec, config.evaluation, cache)
        self.domain = spec.domain_of_image(config.train.domain)
        self._held_out: dict[int, tuple[Batch, bool]] = {}

    def held_out(self, size: int) -> tuple[Batch, bool]:
        """Held-out samples of one size, at most the protocol's number; and whether its domains are aligned."""
        if size not in self._held_out:
            self._held_out[size] = self.read(self.split, size, self.config.evaluation.num_images)
        return self._held_out[size]

    def read(self, split: str, size: int, num: int) -> tuple[Batch, bool]:
        """As `held_out`, of any split; images in [-1, 1]."""
        batch, paired = read_split(self.shards, split, size, num, self.domain, self.cache, self.spec.digest)
        return {key: to_float(value) if value.dtype == torch.uint8 else value for key, value in batch.items()}, paired

    def reals(self, model: GenerativeModel, size: int) -> Tensor:
        """The held-out images that a model's samples are compared with, [N, C, size, size] in [-1, 1]."""
        return self.held_out(size)[0][model.output_key]

    def conditions(self, model: GenerativeModel, size: int) -> Batch:
        """Conditions of held-out data, one a held-out sample; empty for a model that needs none."""
        return model.condition(self.held_out(size)[0])

    def draw(self, sampler: Sampler) -> Tensor:
        """The samples to be scored, one a held-out image, always of the same seed; on the CPU."""
        model, size = sampler.model, sampler.progress.stage.image_size
        num, conditions = len(self.reals(model, size)), self.conditions(model, size)
        return sampler.sample(num, self.config.evaluation.seed + 1, conditions)

    def score(self, model: GenerativeModel, samples: Tensor) -> dict[str, float]:
        """All scores of a model's samples [N, C, S, S]; NaN for the model's metric if one is not finite."""
        if not torch.isfinite(samples).all():
            return {model.metric.name: math.nan}  # never the best, and the training goes on
        reals = self.reals(model, samples.shape[-1])
        device = self.device if _fits(self.device, reals) else torch.device("cpu")
        if self.extractor:
            self.extractor.to(device)
        return evaluate(reals.to(device), samples.to(device), self.extractor, self.config.evaluation.seed)

    def protocol(self, model: GenerativeModel, image_size: int) -> Protocol:
        """What has to agree for two scores to be compared."""
        reals = self.reals(model, image_size)
        domain = None
        if model.output_key == "image" and self.spec.domains:  # image_B says it by itself
            domain = self.domain or "all"
        return Protocol.of(reals, reals, self.extractor, self.spec.digest, self.split, domain)

    @property
    def split(self) -> str:
        """The split that is held out; the training images where nothing was."""
        return "test" if self.spec.num_test else "train"


def _fits(device: torch.device, reals: Tensor) -> bool:
    """Whether a GPU has the memory to score so many images beside what is trained on it: twelve copies, about."""
    return device.type != "cuda" or 12 * reals.nbytes < torch.cuda.mem_get_info(device)[0]


def ensure_extractor(
    path: Path, shards: Path, spec: DataSpec, config: EvaluationConfig, cache: ShardCache | None = None
) -> FeatureNetwork | None:
    """The feature network: read from `path`, or trained on the data set's training images and labels once.

    Another process that trains it is waited for. None for points: images too small for a network.
    """
    if spec.image_size < SMALLEST:
        return None
    if config.extractor:
        return SuppliedNetwork(path)
    if not path.is_file():
        with exclusive(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                _make_extractor(path, shards, spec, config, cache)
    return load_extractor(path)


def _make_extractor(
    path: Path, shards: Path, spec: DataSpec, config: EvaluationConfig, cache: ShardCache | None
) -> None:
    size = min((size for size in spec.sizes if size >= EXTRACTOR_SIZE), default=spec.sizes[-1])
    reader = ShardReader(shards, "train", size, cache=cache)
    ids = reader.some(20_000)
    # Shrunk as they come: a data set without a pyramid has large images alone.
    parts = (reader.read(part) for part in np.array_split(ids, -(-len(ids) // 256)))
    floats = (to_float(torch.from_numpy(part).permute(0, 3, 1, 2)) for part in parts)
    images = torch.cat([resized(each, min(size, EXTRACTOR_SIZE)) for each in floats])
    labels = torch.from_numpy(reader.labels[ids]) if spec.classes else None
    if labels is not None and len(labels.unique()) < 2:
        labels = None  # one class teaches nothing
    extractor = train_extractor(images, labels, num_images=config.extractor_images)
    write_atomic(path, lambda temporary: save_extractor(extractor, temporary))
