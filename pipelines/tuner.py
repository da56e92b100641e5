"""Ray Tune's side of a sweep: trials as actors that train rung by rung, searcher, schedulers, stopping.

The folder is the truth: what Tune itself keeps is thrown away, and a sweep that goes on hands every trial to Tune
again, where it reports the rungs that it has reached already and trains on from there.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from genmodels.config import ComputeConfig
from pipelines import cluster
from pipelines.book import Book, Control
from pipelines.project import last_line
from pipelines.recipes import Recipes
from pipelines.search import Search
from pipelines.sweep import ENDED, REDUCTION, SHARES, Sweep, Trial
from pipelines.trial import RUNG_STATES, Report, advance

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
}


def run(sweep: Sweep, search: Search, recipes: Recipes, num_trials: int, control: Control) -> None:
    """Runs the sweep's trials to their end, or until `control` says so."""
    info = sweep.info
    compute = ComputeConfig(**info["compute"])
    os.environ.update({key: os.environ.get(key, value) for key, value in SETTINGS.items()})
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    share, room = cluster.join(compute, sweep.folder, Path(info["shards"]))
    book, is_nested = Book(sweep, search, recipes, num_trials, control), compute.worker_counts[-1] > 1
    folder = sweep.folder / "ray"
    shutil.rmtree(folder, ignore_errors=True)
    tuner = Tuner(
        tune.with_resources(_Actor, {"CPU": 0.01} if is_nested else share),  # Tune does not count nested workers
        tune_config=TuneConfig(
            metric="score",
            mode=sweep.metric.direction,
            search_alg=_Searcher(book),
            scheduler=_scheduler(info["method"]["scheduler"]),
            num_samples=-1,
            max_concurrent_trials=room if is_nested else None,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            name="tune",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=1),  # its machine may be what was lost
            callbacks=[Bookkeeper(book)],
            stop=_Over(control),
            verbose=0,
        ),
    )
    cluster.beside_main(tuner.fit)
    while control.under_way():  # Tune does not wait for all of them
        control.stop("interrupted")
        time.sleep(0.2)
    for rubble in (folder, *(trial.folder / RUNG_STATES for trial in sweep.trials() if trial.status in ENDED)):
        shutil.rmtree(rubble, ignore_errors=True)


class _Actor(tune.Trainable):
    """Trains trials, one after the other, in one process; a step is a rung."""

    def setup(self, config: dict[str, Any]) -> None:
        """Takes a trial; one that another process began reports its rungs again, without training."""
        self._trial = Trial(Path(config["trial"]["folder"]))
        self._rung = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next trial."""
        self.setup(new_config)
        return True

    def step(self) -> Report:
        """Goes to the next rung."""
        report = advance(self._trial, self._rung, "cuda" if ray.get_gpu_ids() else "cpu")
        self._rung = report["rungs"]
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, int]:
        """How far it was reported when it was paused; the training's state is in the trial's folder."""
        return {"rung": self._rung}

    def load_checkpoint(self, checkpoint: dict[str, int] | None) -> None:
        """Goes on from there."""
        self._rung = checkpoint["rung"] if checkpoint else 0


class _Searcher(Searcher):
    """Tune's view of `Search`."""

    def __init__(self, book: Book):
        super().__init__(metric="score", mode=book.sweep.metric.direction)
        self._book = book

    def suggest(self, trial_id: str) -> Any:
        """The next trial."""
        told = self._book.begin()
        return {"trial": told} if told else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Report | None = None, error: bool = False) -> None:
        """The bookkeeper hears it too, and of every kind of end."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's folder has all of it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Bookkeeper(Callback):
    """Passes on what happens to trials."""

    def __init__(self, book: Book):
        self._book = book

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its actor is there."""
        self._book.started(_of(trial))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Report, **info: Any) -> None:
        """A rung."""
        if not result["done"]:
            self._book.reported(_of(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The last rung, or the scheduler stopped it, or it failed in an orderly way."""
        if "rungs" in trial.last_result:
            self._book.ended(_of(trial), trial.last_result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process died, twice."""
        error = trial.get_pickled_error()
        died = error is None or isinstance(error, ray.exceptions.RayActorError)
        reason = "its process died twice, as for want of memory" if died else last_line(error)
        self._book.ended(_of(trial), {"rungs": 0, "score": math.nan, "reason": reason})


class _InStep(FIFOScheduler):
    """Keeps a population that is larger than the cluster in step: whoever is furthest behind goes next."""

    def __init__(self) -> None:
        super().__init__()
        self._rungs: dict[str, int] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Report) -> str:
        """Makes room at every rung; when a trial goes on, it may do so from another."""
        self._rungs[trial.trial_id] = result["rungs"]
        return TrialScheduler.PAUSE

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The one with the fewest rungs."""
        waiting = [one for one in tune_controller.get_trials() if one.status in (one.PENDING, one.PAUSED)]
        return min(waiting, key=lambda one: self._rungs.get(one.trial_id, 0), default=None)


class _Over(tune.Stopper):
    """Ends the search once `Control` says so and no trial is within a step."""

    def __init__(self, control: Control):
        self._control = control

    def __call__(self, trial_id: str, result: Report) -> bool:
        """Trials end by themselves."""
        return False

    def stop_all(self) -> bool:
        """Whether nothing is left to wait for."""
        return self._control.over and not self._control.under_way()


def _of(tune_trial: Any) -> Trial:
    return Trial(Path(tune_trial.config["trial"]["folder"]))


def _scheduler(name: str) -> TrialScheduler:
    if name == "asha":
        most = REDUCTION ** (len(SHARES["asha"]) - 1)
        return ASHAScheduler("clock", grace_period=1, max_t=most + 1, reduction_factor=REDUCTION)
    if name == "pbt":
        return _InStep()
    return FIFOScheduler()
