"""Which trial goes next, and what became of each: what the process that runs a sweep writes down. Knows no Ray."""

from __future__ import annotations

from random import Random
from typing import Any

from genmodels.model import mix_seed
from pipelines import population
from pipelines.recipes import Recipes
from pipelines.run import locked
from pipelines.search import Search
from pipelines.sweep import ENDED, Sweep, Trial, sentence
from pipelines.trial import RUNG_STATES, Report, take_state
from pipelines.winner import settings


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


class Book:
    """Hands out trials, and writes down what Tune says of them, in this process alone."""

    def __init__(self, sweep: Sweep, search: Search, recipes: Recipes, num_trials: int, control: Control):
        self.sweep, self.search, self.recipes = sweep, search, recipes
        self.num_trials, self.control = num_trials, control
        self._rungs: dict[int, dict[str, float]] = {}  # scores by trial
        self._known = sweep.trials()
        self._next = len(self._known)

    def begin(self) -> dict[str, Any] | None:
        """What the actor of a trial is told: one that is on disk, then new ones; None where there are no more."""
        if self._known:
            trial = self._known.pop(0)
            self.search.replay(trial.number, trial.values)
        elif self._next >= self.num_trials or self.control.over:
            return None
        else:
            proposed = self.search.ask(self._next)
            if proposed is None:
                return None
            trial = self.recipes.add(self.sweep, self._next, proposed)
            self._next += 1
        return {"folder": str(trial.folder)}

    def started(self, trial: Trial) -> None:
        """A trial goes to an actor, the first time or after a pause."""
        if trial.status not in ENDED:
            trial.update(status="running")
            self._evolve(trial)

    def reported(self, trial: Trial, report: Report) -> None:
        """A trial has reached a rung that is not its last."""
        self.search.report(trial.number, report["rungs"], report["score"])
        self._rungs.setdefault(report["rungs"], {})[trial.name] = report["score"]

    def _evolve(self, trial: Trial) -> None:
        """For PBT: one of the worst at the rung where it stands goes on from one of the best, with other settings."""
        rung = len(trial.scores())
        if self.recipes.scheduler != "pbt" or trial.name not in self._rungs.get(rung, {}):
            return
        random = Random(mix_seed(self.sweep.info["method"]["seed"], trial.number, rung))
        best = population.parent(self._rungs[rung], trial.name, self.sweep.metric.direction, random)
        source = Trial(self.sweep.folder / best) if best else trial
        state = source.folder / RUNG_STATES / str(rung)
        if best and state.is_dir():  # else it was killed before it left one
            take_state(trial, state)
            values = population.perturbed(self.recipes.space, source.values, random)
            trial.update(values=values, config=self.recipes.config(values).to_json())
            print(f"{trial.name}: goes on from {best} at rung {rung} with {settings(values)}", flush=True)

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
