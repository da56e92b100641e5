"""One sweep on disk: what is searched, and its trials, which are runs (run.py) in its folder.

data/runs/sweeps/<model>-<identity>/
    run.json        recipe, space, searcher, scheduler, status, MLflow run
    trial-000/      a run's folder, whose run.json also names values, rungs and how it ended
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from genmodels.config import RunConfig
from genmodels.files import write_json
from genmodels.model import Metric, Stage, model_class
from genmodels.search_space import Space, Values
from pipelines.run import Event, Run

Searcher = Literal["tpe", "random", "grid"]
Scheduler = Literal["asha", "none", "pbt"]
REDUCTION = 3  # of the trials at a rung one in so many goes on
SHARES = {"asha": (1 / 9, 1 / 3, 1.0), "none": (1.0,), "pbt": tuple(i / 6 for i in range(1, 7))}  # of a trial's images
ENDED = ("finished", "halted", "failed")  # else a trial goes on: new, running, stopped


@dataclass(frozen=True)
class Method:
    """How a sweep goes through its space."""

    searcher: Searcher
    scheduler: Scheduler
    seed: int
    points: tuple[Values, ...] = ()  # of a grid, or to compare


class Trial(Run):
    """A training of a sweep."""

    @property
    def sweep(self) -> Sweep:
        """The sweep that it belongs to."""
        return Sweep(self.folder.parent)

    @property
    def number(self) -> int:
        """Its place in the sweep."""
        return int(self.name.rpartition("-")[2])

    @property
    def values(self) -> Values:
        """What it was given of the space."""
        return self.info["values"]

    @property
    def status(self) -> str:
        """new, running, stopped (goes on), halted (by scheduler or budget), finished or failed."""
        return self.info["status"]

    def scores(self) -> list[float]:
        """Of every rung that it has reached, the best so far."""
        events, info = self.events(), self.info
        metric = model_class(info["config"]["model"]).metric
        scores = [score_at(events, rung, metric) for rung in info["rungs"]]
        return [score for score in scores if score is not None]

    @property
    def num_images(self) -> int:
        """Images shown so far."""
        return max((event["num_images"] for event in self.events()), default=0)


class Sweep(Run):
    """A sweep's folder."""

    def trials(self) -> list[Trial]:
        """All trials, in order."""
        return [Trial(file.parent) for file in sorted(self.folder.glob("trial-*/run.json"))]

    @property
    def metric(self) -> Metric:
        """What trials are ranked by: the model's declared score."""
        return model_class(self.info["config"]["model"]).metric


def open_sweep(storage: Path, config: RunConfig, space: Space, method: Method, data_digest: str) -> Sweep:
    """The sweep of this recipe, space, method and data: that on disk, or a new one."""
    described = {
        "config": config.to_json(),
        "space": {name: dimension.model_dump(mode="json") for name, dimension in space.items()},
        "method": asdict(method),
        "data_digest": data_digest,
    }
    identity = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    sweep = Sweep(storage / "sweeps" / f"{config.model}-{identity}")
    if not (sweep.folder / "run.json").is_file():
        sweep.folder.mkdir(parents=True, exist_ok=True)
        info = {**described, "status": "new", "created": time.time(), "seconds": 0.0, "mlflow_run_id": None}
        write_json(sweep.folder / "run.json", info)
    return sweep


def rungs(stages: Sequence[Stage], shares: Iterable[float]) -> tuple[list[int], list[int]]:
    """Where trials are compared: images shown, and image sizes; of a model with stages, the nearest stage ends."""
    ends = [sum(stage.num_images for stage in stages[: i + 1]) for i in range(len(stages))]
    targets = [math.ceil(ends[-1] * share) for share in shares]
    if len(stages) > 1:
        targets = [min(ends, key=lambda end: abs(end - target)) for target in targets]  # noqa: B023
    targets = sorted({*targets, ends[-1]})
    return targets, [next(s.image_size for s, end in zip(stages, ends, strict=True) if end >= t) for t in targets]


def score_at(events: list[Event], rung: int, metric: Metric) -> float | None:
    """The best score up to the snapshot at `rung` images, of its protocol; None before it, NaN if none is finite."""
    snapshots = [event for event in events if event["type"] == "snapshot" and event["num_images"] > 0]
    last = next((event for event in snapshots if event["num_images"] >= rung), None)
    if last is None:
        return None
    best: float | None = None
    for event in snapshots[: snapshots.index(last) + 1]:
        if event["protocol"] == last["protocol"] and metric.better(event["score"], best):
            best = event["score"]
    return math.nan if best is None else best


def ranked(trials: Iterable[Trial], metric: Metric) -> list[tuple[Trial, float]]:
    """Trials that count, best first: by rungs reached, then by score there."""
    sign = 1 if metric.direction == "min" else -1
    scored = [(trial, scores) for trial in trials if trial.status != "failed" and (scores := trial.scores())]
    scored.sort(key=lambda pair: (-len(pair[1]), sign * pair[1][-1]))
    return [(trial, scores[-1]) for trial, scores in scored]


def sentence(trial: Trial) -> str:
    """How a trial ended, in words."""
    info, scores = trial.info, trial.scores()
    if info["status"] == "failed":
        return f"failed: {info['reason']}"
    where = f"{trial.num_images:,} images, score {scores[-1]:.5g}" if scores else "no score"
    rung = f", stopped at rung {len(scores)} of {len(info['rungs'])}" if info["status"] == "halted" else ""
    return where + rung
