"""What a sweep's values make of a recipe: configurations, and the folders of trials."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from genmodels.files import write_json
from genmodels.search_space import Space, Values, bounds, nested
from pipelines import train
from pipelines.project import UserError
from pipelines.sweep import SHARES, Scheduler, Sweep, Trial, rungs

if TYPE_CHECKING:
    from genmodels.config import ComputeConfig, Params, RunConfig
    from genmodels.data.fields import DataSpec


@dataclass(frozen=True)
class Recipes:
    """A model's recipe under the values of a space."""

    params: Params
    model: str
    recipe: str | None
    num_images: int  # of a whole trial
    space: Space
    spec: DataSpec
    scheduler: Scheduler

    def config(self, values: Values) -> RunConfig:
        """The recipe with these values; ValueError where they do not go together."""
        changes = nested({"train.num_images": self.num_images, **values})
        return self.params.run(self.model, self.recipe, changes, f"sweep.{self.model}")

    def plan(self, config: RunConfig) -> train.Plan:
        """What such a training will do; ValueError where it cannot."""
        return train.preflight(config, self.spec, self.compute)

    @property
    def compute(self) -> ComputeConfig:
        """Where trials run: at least one worker, since Tune takes processes."""
        compute = self.params.compute
        return compute if compute.num_workers else compute.model_copy(update={"num_workers": 1})

    def rungs(self, plan: train.Plan) -> tuple[list[int], list[int]]:
        """Images shown and image sizes where trials are compared."""
        return rungs(plan.stages, SHARES[self.scheduler])

    def current(self) -> Values | None:
        """The recipe's own values, where all lie within the space."""
        settings = self.config({}).to_json()
        values: Values = {}
        for name, dimension in self.space.items():
            if dimension.applies(values):
                section = settings["train"] if name.startswith("train.") else settings["settings"]
                value = section.get(name.removeprefix("train."))
                if dimension.drawn(value) is None:
                    return None
                values[name] = value
        return values

    @cached_property
    def _base(self) -> tuple[RunConfig, train.Plan]:
        config = self.config({})
        return config, self.plan(config)

    def add(self, sweep: Sweep, number: int, values: Values) -> Trial:
        """Makes a trial's folder; one whose values do not go together has failed already, with that as its reason."""
        trial, reason = Trial(sweep.folder / f"trial-{number:03d}"), ""
        config, plan = self._base
        marks, sizes = self.rungs(plan)
        try:
            config = self.config(values)
            plan = self.plan(config)
            marks, now = self.rungs(plan)
            if now != sizes:
                raise ValueError(f"rungs at {now} pixels, the recipe's at {sizes}: scores do not compare")
        except (ValueError, UserError) as error:
            (config, plan), reason = self._base, str(error)
        trial.folder.mkdir(exist_ok=True)
        (trial.folder / "lock").touch()
        info = train.described(trial, config, self.spec, plan)
        info["tags"] |= {"sweep": sweep.name}
        own: dict[str, Any] = {"config": config.to_json(), "values": values, "rungs": marks, "reason": reason}
        state = {"status": "failed" if reason else "new", "created": time.time(), "mlflow_run_id": None}
        write_json(trial.folder / "run.json", {**info, **own, **state, "registered": False})
        return trial

    def check_for_pbt(self) -> None:
        """UserError where trials could not take over each other's weights."""
        for name, dimension in self.space.items():
            if dimension.when or name.startswith("train."):
                raise UserError(f"sweep.{self.model}.{name}: pbt changes neither train settings nor conditional ones")
        sizes = self.plan(self.config({})).num_parameters
        for name, values in bounds(self.space):
            if self.plan(self.config(values)).num_parameters != sizes:
                raise UserError(f"sweep.{self.model}.{name} changes the networks' sizes; pbt copies weights")
