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
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from genmodels.config import ComputeConfig
from genmodels.search_space import Dimension, Space, Values
from pipelines import cluster
from pipelines.project import last_line
from pipelines.recipes import Recipes
from pipelines.run import locked
from pipelines.search import Search
from pipelines.sweep import ENDED, REDUCTION, SHARES, Sweep, Trial, sentence
from pipelines.trial import Report, advance, copy_state, take_state

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
}


class Control:
    """Ends a sweep before all its trials are done."""

    def __init__(self, sweep: Sweep):
        self.sweep, self.over, self.reason = sweep, False, ""

    def ask(self, word: str) -> None:
        """As `Run.ask`, which the first Ctrl-C calls."""
        self.stop("interrupted")

    def stop(self, reason: str) -> None:
        """Lets every trial stop after a checkpoint, and none begin."""
        self.over, self.reason = True, self.reason or reason
        self.remind()

    def remind(self) -> None:
        """Asks the trials under way again: one that was just starting has not heard it."""
        for trial in self.under_way() if self.over else ():
            if trial.asked() != "stop":
                trial.ask("stop")

    def under_way(self) -> list[Trial]:
        """The trials that a process trains at this moment."""
        return [trial for trial in self.sweep.trials() if trial.status == "running" and locked(trial.folder / "lock")]


def run(sweep: Sweep, search: Search, recipes: Recipes, num_trials: int, control: Control) -> None:
    """Runs the sweep's trials to their end, or until `control` says so."""
    info = sweep.info
    compute, scheduler = ComputeConfig(**info["compute"]), info["method"]["scheduler"]
    os.environ.update({key: os.environ.get(key, value) for key, value in SETTINGS.items()})
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    share, room = cluster.join(compute, sweep.folder, Path(info["shards"]))
    book, is_nested, is_pbt = (
        _Book(sweep, search, recipes, num_trials, control),
        _is_nested(compute),
        scheduler == "pbt",
    )
    population = tune.grid_search([book.begin() for _ in range(num_trials)]) if is_pbt else None
    folder = sweep.folder / "ray"
    shutil.rmtree(folder, ignore_errors=True)
    tuner = Tuner(
        tune.with_resources(_Actor, {"CPU": 0.01} if is_nested else share),  # Tune does not count nested workers
        param_space={"trial": population} if is_pbt else None,
        tune_config=TuneConfig(
            metric="score",
            mode=sweep.metric.direction,
            search_alg=None if is_pbt else _Searcher(book),  # PBT takes none
            scheduler=_scheduler(scheduler, recipes.space),
            num_samples=1 if is_pbt else -1,
            max_concurrent_trials=room if is_nested else None,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            name="tune",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=1),  # its machine may be what was lost
            callbacks=[_Bookkeeper(book)],
            stop=_Over(control),
            verbose=0,
        ),
    )
    cluster.beside_main(tuner.fit)
    while control.under_way():  # Tune does not wait for all of them
        control.stop("interrupted")
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


def _is_nested(compute: ComputeConfig) -> bool:
    return compute.worker_counts[-1] > 1


class _Book:
    """Hands out trials, and writes down what Tune says of them, in this process alone."""

    def __init__(self, sweep: Sweep, search: Search, recipes: Recipes, num_trials: int, control: Control):
        self.sweep, self.search, self.recipes, self.num_trials, self.control = (
            sweep,
            search,
            recipes,
            num_trials,
            control,
        )
        self._known = sweep.trials()
        self._next = len(self._known)

    def begin(self) -> dict[str, Any] | None:
        """What the actor of a trial is told: one that is on disk, then new ones; None where there are no more."""
        if self._known:
            trial = self._known.pop(0)
            values = self.search.replay(trial.number, trial.values)
        elif self._next >= self.num_trials or self.control.over:
            return None
        else:
            proposed = self.search.ask(self._next)
            if proposed is None:
                return None
            values, trial = proposed, self.recipes.add(self.sweep, self._next, proposed)
            self._next += 1
        return {"folder": str(trial.folder), "values": values}

    def started(self, trial: Trial, values: Values) -> None:
        """A trial goes to an actor, with values that PBT may have changed."""
        if trial.status in ENDED:
            return
        trial.update(status="running")
        if values != trial.values:
            trial.update(values=values, config=self.recipes.config(values).to_json())

    def reported(self, trial: Trial, report: Report) -> None:
        """A trial goes on after a rung."""
        self.search.report(trial.number, report["rungs"], report["score"])

    def ended(self, trial: Trial, report: Report) -> None:
        """The last that a trial reported."""
        if report.get("interrupted"):
            return
        self.search.report(trial.number, report["rungs"], report["score"])
        if trial.status not in ENDED:
            whole = report["rungs"] == len(trial.info["rungs"])
            status = "failed" if report["reason"] else "finished" if whole else "halted"
            trial.update(status=status, reason=report["reason"])
            print(f"{trial.name}: {sentence(trial)}", flush=True)
        self.search.tell(trial.number, trial.status)


class _Actor(tune.Trainable):
    """Trains trials, one after the other, in one process; a step is a rung."""

    def setup(self, config: dict[str, Any]) -> None:
        """Takes a trial; one that another process began reports its rungs again, without training."""
        self._trial = Trial(Path(config["trial"]["folder"]))
        is_pbt = self._trial.sweep.info["method"]["scheduler"] == "pbt"  # which compares a population as it is now
        self._rung = max(0, len(self._trial.scores()) - 1) if is_pbt else 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next trial."""
        self.setup(new_config)
        return True

    def step(self) -> Report:
        """Goes to the next rung."""
        report = advance(self._trial, self._rung, "cuda" if ray.get_gpu_ids() else "cpu")
        self._rung = report["rungs"]
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For PBT: others go on from it."""
        copy_state(self._trial, Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """For PBT: goes on from its own, or another's."""
        self._rung = take_state(self._trial, Path(checkpoint))


class _Searcher(Searcher):
    """Tune's view of `Search`."""

    def __init__(self, book: _Book):
        super().__init__(metric="score", mode=book.sweep.metric.direction)
        self._book, self._folders = book, dict[str, Path]()

    def suggest(self, trial_id: str) -> Any:
        """The next trial."""
        told = self._book.begin()
        if told is None:
            return Searcher.FINISHED
        return {"trial": told}

    def on_trial_complete(self, trial_id: str, result: Report | None = None, error: bool = False) -> None:
        """The bookkeeper hears it too, and of every kind of end."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's folder has all of it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Bookkeeper(Callback):
    """Passes on what happens to trials."""

    def __init__(self, book: _Book):
        self._book = book

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its actor is there."""
        self._book.started(_of(trial), trial.config["trial"]["values"])

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
        reason = last_line(trial.get_pickled_error() or RuntimeError("its process died"))
        self._book.ended(_of(trial), {"rungs": 0, "score": math.nan, "reason": reason})


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


def _scheduler(name: str, space: Space) -> TrialScheduler:
    if name == "asha":
        most = REDUCTION ** (len(SHARES["asha"]) - 1)
        return ASHAScheduler("clock", grace_period=1, max_t=most + 1, reduction_factor=REDUCTION)
    if name == "pbt":
        return PopulationBasedTraining(
            "rungs",
            perturbation_interval=1,
            hyperparam_mutations={"trial": {"values": {name: _mutation(one) for name, one in space.items()}}},
            custom_explore_fn=partial(_inside, space),
            synch=True,
            log_config=False,
        )
    return FIFOScheduler()


def _mutation(dimension: Dimension) -> Any:
    if dimension.kind == "choice":
        return list(dimension.values)
    low, high = dimension.values
    if dimension.kind == "int":
        return tune.randint(low, high + 1)
    return tune.loguniform(low, high) if dimension.is_log else tune.uniform(low, high)


def _inside(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    """PBT multiplies values without a look at their range."""
    trial = config["trial"]
    return {"trial": {**trial, "values": {name: space[name].clipped(value) for name, value in trial["values"].items()}}}
