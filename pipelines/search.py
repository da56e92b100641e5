"""Which values a sweep tries next. Optuna proposes; what is on disk already is told to it again."""

from __future__ import annotations

import math
from typing import Any

from genmodels.model import mix_seed
from genmodels.search_space import Space, Values, draw
from pipelines.sweep import Method

STARTUP = 6  # trials at random before TPE has something to go by


class Search:
    """Proposes the values of each trial by its number, and hears how trials went."""

    def __init__(self, space: Space, method: Method, direction: str, first: Values | None):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._method, self._first = space, method, first
        self._study = optuna.create_study(direction="minimize" if direction == "min" else "maximize")
        self._asked: dict[int, Any] = {}

    def ask(self, number: int) -> Values | None:
        """The values of a new trial; None where there are no more. The first are the recipe's own."""
        if self._method.points:
            return self._method.points[number] if number < len(self._method.points) else None
        if number == 0 and self._first is not None:
            return self.replay(0, self._first)
        self._study.sampler = self._sampler(number)
        self._asked[number] = self._study.ask()
        return draw(self._space, self._asked[number])

    def replay(self, number: int, values: Values) -> Values:
        """Takes the values of a trial that there is already."""
        if not self._method.points:
            self._study.enqueue_trial({name: self._space[name].drawn(value) for name, value in values.items()})
            self._asked[number] = self._study.ask()
            draw(self._space, self._asked[number])
        return values

    def report(self, number: int, rung: int, score: float) -> None:
        """A trial's score at a rung, 1 the first."""
        trial = self._asked.get(number)
        if trial and math.isfinite(score) and rung not in self._reported(trial):
            trial.report(score, rung)

    def tell(self, number: int, status: str) -> None:
        """How a trial ended: finished, halted, or failed, which is the worst of all."""
        from optuna.trial import TrialState, create_trial

        trial = self._asked.pop(number, None)
        if trial is None:
            return
        if status == "finished":
            reported = self._reported(trial)
            self._study.tell(trial, reported[max(reported)])
        elif status == "halted":
            self._study.tell(trial, state=TrialState.PRUNED)
        else:  # one that was pruned without a score comes last in TPE's order; a failed one would be forgotten
            self._study.tell(trial, state=TrialState.FAIL)
            worst = create_trial(state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions)
            self._study.add_trial(worst)

    def _reported(self, trial: Any) -> dict[int, float]:
        return self._study.trials[trial.number].intermediate_values

    def _sampler(self, number: int) -> Any:
        """Seeded by the trial's number, so that a sweep that goes on draws what it would have drawn."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = mix_seed(self._method.seed, number, 0) % 2**32
        if self._method.searcher == "random":
            return RandomSampler(seed)
        return TPESampler(n_startup_trials=STARTUP, seed=seed)
