"""Untrained models as sampling folders and registered versions, for tests of what becomes of trained ones."""

from pathlib import Path

import torch
from conftest import TINY_MODELS, Prepared

from genmodels import export
from genmodels.config import RunConfig
from genmodels.metrics.judge import Judge
from genmodels.model import Progress, Stage, model_class
from pipelines import registry
from pipelines.worker import build_model


def export_untrained(config: RunConfig, data: Prepared, folder: Path) -> Path:
    """A sampling folder as training writes it, with held-out conditions."""
    model = build_model(config, data.spec)
    judge = Judge(data.folder, data.spec, config, folder.parents[1] / "extractor")  # one for all of a session
    progress = Progress(0, 0, model.stages(256, 16)[-1], 1.0)
    export.save(folder, model, progress, conditions=judge.conditions(model, 16))
    return folder


def export_vae(folder: Path, data: Prepared, seed: int) -> Path:
    """A VAE of that seed's weights."""
    torch.manual_seed(seed)
    cls = model_class("vae")
    model = cls(cls.Config(**TINY_MODELS["vae"]), data.spec)
    export.save(folder, model, Progress(1, 64, Stage("train", 64, 16, 16), 1.0))
    return folder


def register_vae(
    folder: Path, data: Prepared, seed: int, score: float | None, protocol: str = "p1", **tags: str
) -> int:
    """A version with the weights of that seed; its number."""
    return registry.register(export_vae(folder / f"{seed}-{protocol}", data, seed), None, score, protocol, tags)[0]
