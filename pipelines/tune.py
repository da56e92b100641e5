"""Searches a model's settings with Ray Tune, over the space that `sweep.MODEL` of params.yaml declares.

    python pipelines/tune.py --model dcgan --num-trials 16
    python pipelines/tune.py --model dcgan --num-trials 16 --confirm --write-params

The same command goes on with a sweep that was interrupted; trials that have ended are not repeated.
"""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.project import Overrides, UserError, command, extractor_path, params, shard_cache, shards, storage

if TYPE_CHECKING:
    from genmodels.search_space import Values
    from pipelines.recipes import Recipes
    from pipelines.sweep import Method, Scheduler, Searcher, Sweep

LOOK_EVERY = 1.0  # seconds between looks at budgets and new events


@command
def main(
    model: Annotated[str, typer.Option(help="a registered model with a space under sweep in params.yaml")],
    num_trials: Annotated[int, typer.Option(min=1, help="trials in all")] = 16,
    recipe: Annotated[str | None, typer.Option(help="a name under recipes.MODEL in params.yaml")] = None,
    searcher: Annotated[str | None, typer.Option(help="tpe, random or grid; default: tpe, for pbt random")] = None,
    scheduler: Annotated[str, typer.Option(help="asha (stops bad trials early), none or pbt")] = "asha",
    trial_images: Annotated[int | None, typer.Option(min=1, help="of a whole trial; default: the recipe's")] = None,
    max_images: Annotated[int | None, typer.Option(min=1, help="stop after so many over all trials")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="stop after so long")] = None,
    grid_points: Annotated[int, typer.Option(min=2, help="values a range in a grid")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="of the search")] = 0,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="train winner and recipe in full, three seeds each; promote the better")
    ] = False,
    write_params: Annotated[
        bool, typer.Option("--write-params", help="write the winner into params.yaml; with --confirm only if better")
    ] = False,
    num_workers: Annotated[int | None, typer.Option(min=1, help="Ray workers a trial")] = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and show the plan")] = False,
) -> None:
    """Searches for a better recipe of MODEL, and registers the best that it found."""
    from pipelines import winner
    from pipelines.sweep import ranked

    if num_workers is not None:
        overrides = [*(overrides or []), f"compute.num_workers={num_workers}"]
    recipes = _recipes(params(overrides), model, recipe, trial_images, _choice(scheduler, "scheduler", "asha none pbt"))
    method = _method(recipes, searcher, seed, grid_points)
    if dry_run:
        return show(recipes, method, num_trials)
    num_trials = min(num_trials, len(method.points)) if method.points else num_trials
    sweep = searched(recipes, method, num_trials, max_images, max_minutes)
    best = ranked(sweep.trials(), sweep.metric)
    if not best:
        raise UserError(f"sweep {sweep.name}: no trial has a score; reasons are in {sweep.folder}/trial-*/run.json")
    show_trials(sweep)
    trial, score = best[0]
    print(f"best: {trial.name}, {sweep.metric.name} {score:.5g}, {winner.settings(trial.values) or 'the recipe'}")
    winner.register(trial)
    is_better = winner.confirmed(recipes, trial.values, method.seed) if confirm else True
    if write_params and is_better:
        winner.write_params(recipes, trial.values)


def searched(
    recipes: Recipes, method: Method, num_trials: int, max_images: int | None = None, max_minutes: float | None = None
) -> Sweep:
    """The sweep with all its trials ended; KeyboardInterrupt where somebody ends it before."""
    from genmodels.metrics.judge import ensure_extractor
    from pipelines.run import owned
    from pipelines.sweep import open_sweep
    from pipelines.train import command_line

    compute, base = recipes.compute, recipes.config({})
    plan = recipes.plan(base)
    sweep = open_sweep(storage(compute), base, recipes.space, method, recipes.spec.digest)
    limits = {"num_trials": num_trials, "max_images": max_images, "max_minutes": max_minutes}
    if sweep.info["status"] == "finished" and sweep.info["limits"] == limits:
        print(f"sweep {sweep.name} is finished, in {sweep.folder}")
        return sweep
    folder, cache = shards(base.dataset), shard_cache(compute)
    extractor = extractor_path(compute, recipes.spec, base.evaluation)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with owned(sweep):
        ensure_extractor(extractor, folder, recipes.spec, base.evaluation, cache)
        settled = plan.compute.model_dump(mode="json")
        sweep.update(status="running", extractor=str(extractor), compute=settled, shards=str(folder), limits=limits)
        sweep.update(command=command_line())
        print(f"sweep {sweep.name} in {sweep.folder}", flush=True)
        reason = _run(recipes, sweep, num_trials, max_images, max_minutes)
        sweep.update(status="stopped" if reason == "interrupted" else "finished")
    if reason == "interrupted":
        raise KeyboardInterrupt
    return sweep


def _run(recipes: Recipes, sweep: Sweep, num_trials: int, max_images: int | None, max_minutes: float | None) -> str:
    """Runs trials until there are no more, or until the reason that is returned."""
    from pipelines import tuner
    from pipelines.book import Control
    from pipelines.search import Search
    from pipelines.stopping import stoppable
    from pipelines.sweep import ENDED
    from pipelines.sweep_tracking import SweepTracker
    from pipelines.watching import repeating

    info, begin = sweep.info, time.monotonic()
    method = _method_of(info["method"])
    search = Search(recipes.space, method, sweep.metric.direction, recipes.current())
    control = Control(sweep)
    tracker = SweepTracker(sweep)

    def look() -> None:
        tracker.poll()
        seconds = info["seconds"] + time.monotonic() - begin
        if max_minutes is not None and seconds > 60 * max_minutes:
            control.stop(f"{max_minutes:g} minutes are over")
        if max_images is not None and sum(trial.num_images for trial in sweep.trials()) >= max_images:
            control.stop(f"{max_images:,} images have been shown")
        control.remind()

    with stoppable(control), repeating(look, LOOK_EVERY, "sweep-watch"):
        tuner.run(sweep, search, recipes, num_trials, control)
    for trial in sweep.trials():
        if trial.status not in ENDED:
            trial.update(status="stopped" if control.reason == "interrupted" else "halted", reason=control.reason)
    sweep.update(seconds=info["seconds"] + time.monotonic() - begin)
    if control.reason:
        print(f"stopped: {control.reason}", flush=True)
    if not tracker.close("KILLED" if control.reason == "interrupted" else "FINISHED"):
        from genmodels.credentials import masked

        away = masked(str(tracker.error))
        print(f"warning: MLflow is away ({away}); when it is back: python pipelines/sync.py", file=sys.stderr)
    return control.reason


def _recipes(
    everything: Any, model: str, recipe: str | None, trial_images: int | None, scheduler: Scheduler
) -> Recipes:
    from genmodels.config import check_space
    from pipelines import train
    from pipelines.recipes import Recipes

    config = everything.run(model, recipe)
    if model not in everything.sweep:
        choices = ", ".join(everything.sweep) or "none"
        raise UserError(f"params.yaml has no sweep.{model}, the space to search; there are: {choices}")
    check_space(everything, model, everything.sweep[model], recipe)
    spec = train.prepared(everything, config)
    images = trial_images or config.train.num_images
    return Recipes(everything, model, recipe, images, everything.sweep[model], spec, scheduler)


def _method(recipes: Recipes, searcher: str | None, seed: int, grid_points: int) -> Method:
    from genmodels.search_space import grid
    from pipelines.sweep import Method

    is_pbt = recipes.scheduler == "pbt"
    chosen: Searcher = _choice(searcher or ("random" if is_pbt else "tpe"), "searcher", "tpe random grid")
    if is_pbt:
        if chosen != "random":
            raise UserError(f"--searcher {chosen}: pbt changes values by itself, after a random start")
        recipes.check_for_pbt()
    points: list[Values] = grid(recipes.space, grid_points) if chosen == "grid" else []
    return Method(chosen, recipes.scheduler, seed, tuple(points))


def _method_of(values: dict[str, Any]) -> Method:
    from pipelines.sweep import Method

    return Method(**{**values, "points": tuple(values["points"])})


def _choice(value: str, what: str, choices: str) -> Any:
    if value not in choices.split():
        raise UserError(f"unknown {what} {value!r}; choices: {', '.join(choices.split())}")
    return value


def show(recipes: Recipes, method: Method, num_trials: int) -> None:
    """Prints what would be searched."""
    from pipelines import train

    plan = recipes.plan(recipes.config({}))
    train.show(plan)
    marks, sizes = recipes.rungs(plan)
    places = ", ".join(f"{mark:,} images ({size} px)" for mark, size in zip(marks, sizes, strict=True))
    print(f"{num_trials} trials, {method.searcher}, {method.scheduler}; compared at {places}")
    for name, dimension in recipes.space.items():
        when = f" when {dimension.when}" if dimension.when else ""
        print(f"  {name}: {dimension.kind} {list(dimension.values)}{when}")


def show_trials(sweep: Sweep) -> None:
    """Prints a row a trial, the best first."""
    from rich.console import Console
    from rich.table import Table

    from pipelines.sweep import ranked, sentence
    from pipelines.winner import settings

    best = [trial for trial, _ in ranked(sweep.trials(), sweep.metric)]
    rest = [trial for trial in sweep.trials() if trial not in best]
    table = Table("trial", "values", "how it ended", title=sweep.name, title_justify="left")
    for trial in [*best, *rest]:
        cells = trial.name, settings(trial.values), sentence(trial)
        table.add_row(*cells)
    Console(markup=False, emoji=False).print(table)  # names may hold brackets


if __name__ == "__main__":
    typer.run(main)
