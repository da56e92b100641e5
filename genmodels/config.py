"""params.yaml -> a validated, frozen configuration; overrides; the digest that identifies it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from genmodels import search_space
from genmodels.data.remote import is_url
from genmodels.model import Strict, model_class, model_names
from genmodels.search_space import Dimension
from genmodels.settings_file import ConfigError, override, read_yaml, refuse_secrets
from genmodels.validation import choose, listed, validated

NumWorkers = Annotated[int, Field(ge=0)]


def _store_url(value: str) -> str:
    if not is_url(value):
        raise PydanticCustomError("no_url", "Input should be a URL such as s3://bucket/prefix")
    return value.rstrip("/")


def _folder_name(value: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", value):
        raise PydanticCustomError("no_name", "Input should be a name: letters, digits, '_', then '-' and '.' too")
    return value


StoreUrl = Annotated[str, AfterValidator(_store_url)]
FolderName = Annotated[str, AfterValidator(_folder_name)]
Level = Annotated[int, Field(strict=True, ge=0, le=255)]  # strict: true is no 1
Workers = Annotated[int, Field(strict=True, ge=1)]
Elastic = tuple[Workers, Workers]


class DatasetConfig(Strict):
    """One named data set: where its images come from and how they become shards."""

    source: str = Field(
        min_length=1,
        description="a folder or an fsspec URL (s3://bucket/photos): flat, one folder a class, train/ and test/ of "
        "either, or trainA/trainB; an archive or a folder of such: MNIST's idx-ubyte files, CIFAR's python batches, "
        ".parquet, WebDataset's .tar; or the words 'sprites' (pictures) and "
        "'ring' (points of the plane as images of one pixel and two channels)",
    )
    label: str | None = Field(
        None, description="the column that names an image's class; null: its folder or archive does"
    )
    attributes: tuple[str, ...] | None = Field(
        None,
        description="null: every 0/1 column of attributes.csv or of a .parquet; NAME: a column, one attribute a value "
        "where it is not 0/1; NAME=VALUE: one of its values",
    )
    split_by: str | None = Field(
        None, description="column whose equal values stay in one split: all pictures of one person, of one drawing"
    )
    image_size: int = Field(
        default_factory=lambda values: 1 if values.get("source") == "ring" else 32,
        ge=1,
        le=2048,
        description="side of the largest square images, pixels",
        validate_default=True,
    )
    channels: Literal[1, 2, 3] = Field(
        default_factory=lambda values: 2 if values.get("source") == "ring" else 3, description="3: RGB, 1: gray"
    )
    fit: Literal["crop", "random_crop", "pad"] = Field(
        "crop", description="how other aspect ratios become square; random_crop: a place that the file's name decides"
    )
    resampling: Literal["lanczos", "area"] = Field("lanczos", description="how images become smaller, both antialiased")
    duplicates: Literal["keep", "drop"] = Field("keep", description="what becomes of images of equal bytes")
    background: tuple[Level, Level, Level] = Field((255, 255, 255), description="ground under transparency and padding")
    pyramid: bool = Field(True, description="write every halving of the size down to 4 too (growing models)")
    encoding: Literal["raw", "png", "jpg", "webp"] = Field("raw", description="raw: fastest; the others: smaller")
    num_images: int | None = Field(None, ge=1, description="at most so many images; sprites: how many to render")
    holdout: float = Field(0.1, ge=0, lt=1, description="share of images held out where the source names no test set")
    num_parts: int = Field(0, ge=0, le=16, description="key patches to find in each image by its edges; 0: none")
    shard_size: int = Field(1024, ge=1, description="samples a shard")
    store: StoreUrl | None = Field(
        None, description="an fsspec URL (s3://bucket/prefix) that takes the shards; null: data/shards/NAME keeps them"
    )
    max_pixels: int = Field(50_000_000, ge=1, description="larger images are rejected before decoding")
    max_reject_fraction: float = Field(0.1, ge=0, le=1, description="stop when more of the source is unusable")

    @field_validator("image_size", "channels", "encoding")
    @classmethod
    def _fits_source(cls, value: Any, info: ValidationInfo) -> Any:
        """Points are of one pixel, two channels and raw; images are of neither."""
        if info.data.get("source") == "ring":
            points: dict[str | None, Any] = {"image_size": 1, "channels": 2, "encoding": "raw"}
            if value != (only := points[info.field_name]):
                raise PydanticCustomError("points", "Input should be {only} for source 'ring'", {"only": only})
        elif info.field_name == "image_size" and value < 4:
            raise PydanticCustomError("too_small", "Input should be greater than or equal to 4")
        elif info.field_name == "channels" and value == 2:
            raise PydanticCustomError("no_channels", "Input should be 1 or 3")
        return value


class TrainConfig(Strict):
    """How any model is trained. Everything is counted in images shown."""

    num_images: int = Field(1_000_000, ge=1, description="images shown in the whole training")
    batch_size: int = Field(64, ge=1, description="global batch, over all workers")
    image_size: int | None = Field(None, ge=4, description="a level of the data set's pyramid; null: the largest")
    domain: str | None = Field(
        None, description="where the data set has domains: the one `image` means; null: the first, all: every"
    )
    mirror: bool = Field(False, description="flip half of the images horizontally")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, noise and sample order")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on GPUs that have it")
    ema_half_life: float = Field(10_000, ge=0, description="of the averaged weights, images; 0: no averaging")
    ema_rampup: float = Field(0.05, ge=0, le=1, description="half-life at most this share of the images shown so far")
    log_every: int = Field(2_000, ge=1, description="images between points of the curves")
    snapshot_every: int = Field(20_000, ge=1, description="images between sample grids with scores")
    checkpoint_every: int = Field(20_000, ge=1, description="images between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="how many of the latest stay")
    keep_best_checkpoints: int = Field(0, ge=0, description="how many of those with the best scores stay beside them")


class EvaluationConfig(Strict):
    """The protocol of the scores: scores of unlike protocols are never compared."""

    num_images: int = Field(1024, ge=4, description="generated and held-out images (fewer where the data holds fewer)")
    extractor: str | None = Field(
        None, description="a TorchScript file of features, as Inception's; null: a network trained on the data's labels"
    )
    extractor_images: int = Field(60_000, ge=1, description="images shown to train the feature network")
    seed: int = Field(0, ge=0, lt=2**63, description="of latents and projections")


class ComputeConfig(Strict):
    """Where training runs. Not part of a run's identity: a run may go on elsewhere."""

    num_workers: NumWorkers | Elastic | Literal["auto"] = Field(
        "auto",
        description="Ray Train workers; [MIN, MAX]: as many of these as the cluster has room for, at any time; "
        "auto: one a GPU, without GPUs one; 0: in this process, without Ray",
    )
    use_gpu: bool | Literal["auto"] = Field("auto", description="auto: one GPU a worker where the cluster has them")
    cpus_per_worker: float | None = Field(None, gt=0, description="null: this machine's cores shared evenly")
    storage_path: str = Field("data/runs", description="folder for checkpoints, curves and samples; all nodes share it")
    checkpoint_store: StoreUrl | None = Field(
        None, description="an fsspec URL (s3://bucket/prefix) that takes the checkpoints; null: storage_path does"
    )
    cache_path: str = Field("data/cache", description="folder for shards of data sets in a store, best on a local disk")
    cache_gb: float = Field(50, gt=0, description="at most so much of them there, in 10^9 bytes")
    max_failures: int = Field(3, ge=-1, description="restarts after lost workers; -1: no limit")

    @field_validator("num_workers")
    @classmethod
    def _least_first(cls, value: Any) -> Any:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise PydanticCustomError("order", "Input should be [MIN, MAX]")
        return value

    @property
    def worker_counts(self) -> range:
        """The numbers of workers that a training may run with, once 'auto' is settled."""
        least, most = self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)
        return range(int(least), int(most) + 1)


class Variant(Strict):
    """One side of a comparison: a model with some settings changed."""

    model: str = Field(description="a registered model")
    changes: dict[str, Any] = Field({}, description="laid over the model's section")


class Comparison(Strict):
    """A proof that takes several trainings, each with several seeds: `pipelines/proofs.py`."""

    claim: str = Field(description="what it must show")
    variants: dict[str, Variant] = Field(min_length=1, description="by name")
    score: str | None = Field(
        None,
        pattern=r"^(swd(_\d+)?|fid|kid|ms_ssim)$",
        description="of the evaluation, lower is better: swd, swd_SIZE, fid, kid or ms_ssim; null: every variant's own "
        "proofs",
    )
    better: str | None = Field(None, description="the variant whose score must be below all the others'")
    seeds: int = Field(1, ge=1, description="trainings a variant, with seeds 0, 1, 2 …")

    @model_validator(mode="after")
    def _winner_is_a_variant(self) -> Comparison:
        if (self.score is None) != (self.better is None):
            raise ValueError("score and better belong together: give both or neither")
        if self.better is not None and self.better not in self.variants:
            raise ValueError(f"better: {self.better!r} is no variant; choices: {', '.join(self.variants)}")
        if self.better is not None and len(self.variants) == 1:
            raise ValueError(f"better: {self.better!r} needs another variant to be better than")
        return self


class RunConfig(Strict):
    """One training, resolved: defaults, recipe and overrides applied, everything validated."""

    model: str
    dataset: str
    settings: SerializeAsAny[Strict] = Field(description="the model's own Config")
    train: TrainConfig
    evaluation: EvaluationConfig

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
        """Inverse of `to_json`."""
        settings = model_class(values["model"]).Config(**values["settings"])
        return cls(**{**values, "settings": settings})

    def digest(self, data_digest: str) -> str:
        """The identity of a run: model, resolved configuration and data (16 hex digits)."""
        identity = json.dumps([self.to_json(), data_digest], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


class Params(Strict):
    """The whole of params.yaml."""

    datasets: dict[FolderName, DatasetConfig] = {}
    models: dict[str, dict[str, Any]] = Field({}, description="by model: dataset, train, and the model's own settings")
    recipes: dict[str, dict[str, dict[str, Any]]] = Field({}, description="by model and name: overrides of its section")
    comparisons: dict[str, Comparison] = Field({}, description="by name: proofs that take several trainings")
    sweep: dict[str, dict[str, Dimension]] = Field({}, description="by model: what pipelines/tune.py searches")
    compute: ComputeConfig = ComputeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    _given: dict[str, dict[str, Any]] = PrivateAttr({})  # by model: what --set gave, which holds over a recipe

    def dataset(self, name: str, where: str = "") -> DatasetConfig:
        """The section of a data set, which the setting `where` names; ConfigError names the nearest one."""
        return choose(self.datasets, name, "data set", where)

    def run(
        self, model: str, recipe: str | None = None, changes: Mapping[str, Any] | None = None, where: str = ""
    ) -> RunConfig:
        """The resolved configuration of one training; `changes`, from `where`, come last."""
        choose(dict.fromkeys(model_names()), model, "model", where)
        section = dict(self.models.get(model, {}))
        if recipe:
            section = _merged(section, choose(self.recipes.get(model, {}), recipe, f"recipe of {model}"))
            section = _merged(section, self._given.get(model, {}))
        section = _merged(section, changes or {})
        where = where or (f"recipes.{model}.{recipe}" if recipe else f"models.{model}")
        dataset, train = section.pop("dataset", None), section.pop("train", {})
        settings = validated(model_class(model).Config, section, where, ("dataset", "train"))
        if dataset is None:
            raise ConfigError(f"models.{model}.dataset is missing; choices: {listed(self.datasets)}")
        self.dataset(dataset, f"{where}.dataset")
        return RunConfig(
            model=model,
            dataset=dataset,
            settings=settings,
            train=validated(TrainConfig, train, f"{where}.train"),
            evaluation=self.evaluation,
        )


def load_params(path: Path, overrides: Iterable[str] = ()) -> Params:
    """Reads params.yaml and applies `key.sub=value` overrides; ConfigError is one line."""
    raw, given = read_yaml(path), dict[str, Any]()
    for each in overrides:
        key, _, value = each.partition("=")
        refuse_secrets(key, "--set")
        refuse_secrets(value, f"--set {key}")
        override(raw, each)
        override(given, each)
    refuse_secrets(raw)
    params = validated(Params, raw, "")
    params._given = given.get("models", {})
    for name in params.models:
        params.run(name, where=f"models.{name}")  # a wrong key anywhere is found before anything starts
    for name, recipes in params.recipes.items():
        for recipe in recipes:
            params.run(name, recipe, where=f"recipes.{name}.{recipe}")
    for name, space in params.sweep.items():
        check_space(params, name, space)
    for name, comparison in params.comparisons.items():
        for key, variant in comparison.variants.items():
            params.run(variant.model, changes=variant.changes, where=f"comparisons.{name}.variants.{key}.changes")
    return params


def check_space(params: Params, model: str, space: search_space.Space, recipe: str | None = None) -> None:
    """Tries every bound of a sweep alone; ConfigError names the first that the model does not take."""
    where = f"sweep.{model}"
    params.run(model, recipe, where=where)
    try:
        search_space.check(space, where)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for _, values in search_space.bounds(space):
        params.run(model, recipe, search_space.nested(values), where)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
