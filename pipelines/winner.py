"""What becomes of a sweep's best trial: a version, a comparison with the recipe, an edit of params.yaml."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from genmodels.search_space import Values
from pipelines.project import UserError, root
from pipelines.recipes import Recipes
from pipelines.sweep import Method, Sweep, Trial

SEEDS = 3  # of a comparison; ones that the sweep has not seen


def settings(values: Values) -> str:
    """lr=0.0004, penalty=r1."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def register(trial: Trial, confirmed: bool = False, evidence: str = "") -> None:
    """Makes the best weights of a trial a version; only a confirmed one can become champion by itself."""
    from mlflow.exceptions import MlflowException

    from genmodels.metrics.evaluate import Protocol
    from pipelines import outcome, registry

    best, info = trial.folder / "best", trial.info
    if not best.is_dir():
        print(f"{trial.name} is not registered: it has no score at the full image size")
        return
    snapshot = outcome.best_snapshot(trial)
    ended = "finished" if confirmed else "was a sweep's trial that nothing confirmed"
    tags = {"run": f"{trial.sweep.name}/{trial.name}", "ended": ended, **info["tags"]}
    protocol = Protocol(**snapshot["protocol"]).digest
    try:
        version, champion = registry.register(best, info["mlflow_run_id"], snapshot["score"], protocol, tags, evidence)
    except (OSError, MlflowException) as away:
        raise UserError(f"{trial.name} could not be registered ({away}); the same command tries it again") from away
    print(f"registered {info['config']['model']} version {version}{', the champion' if champion else ''}")


def confirmed(recipes: Recipes, values: Values, seed: int) -> bool:
    """Whether the winner beats the recipe, each trained in full by SEEDS seeds; then its best is registered to win.

    These trainings are a sweep of their own, so that they go on where they were interrupted.
    """
    from pipelines.tune import searched, show_trials

    if values == recipes.current():
        print("the recipe itself was the best: nothing to confirm")
        return False
    train = recipes.params.run(recipes.model, recipes.recipe).train
    full = dataclasses.replace(recipes, num_images=train.num_images, scheduler="none")
    sides: tuple[Values, Values] = ({}, values)
    points = tuple({**side, "train.seed": train.seed + 1 + i} for i in range(SEEDS) for side in sides)
    sweep = searched(full, Method("grid", "none", seed, points), len(points))
    show_trials(sweep)
    recipe, winner = (_scores(sweep, sweep.trials()[i::2]) for i in range(2))
    sign = 1 if sweep.metric.direction == "min" else -1
    better = sign * sum(winner) < sign * sum(recipe)
    evidence = f"Winner against recipe, {SEEDS} seeds each, {train.num_images:,} images: {sweep.metric.name} " + (
        f"{_words(winner)} against {_words(recipe)}: {'better' if better else 'not better'} on average."
    )
    print(evidence)
    if better:
        at = min(range(SEEDS), key=lambda i: sign * winner[i])
        register(sweep.trials()[2 * at + 1], confirmed=True, evidence=evidence)
    return better


def _scores(sweep: Sweep, trials: list[Trial]) -> list[float]:
    """The final scores; the worst there is for a trial that failed."""
    worst = math.inf if sweep.metric.direction == "min" else -math.inf
    return [trial.scores()[-1] if trial.status == "finished" else worst for trial in trials]


def _words(scores: list[float]) -> str:
    return f"{sum(scores) / len(scores):.4g} ({', '.join(f'{score:.4g}' for score in scores)})"


def write_params(recipes: Recipes, values: Values) -> None:
    """Writes values into the recipe's section of params.yaml, as `dvc exp run -S` would, and keeps its comments."""
    from ruamel.yaml import YAML

    from genmodels.config import load_params
    from genmodels.files import write_atomic

    path = root() / "params.yaml"
    yaml = YAML()
    yaml.width = 1000  # lines stay as they are
    yaml.preserve_quotes = True
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    document = yaml.load(path.read_text(encoding="utf-8"))
    top = ["recipes", recipes.model, recipes.recipe] if recipes.recipe else ["models", recipes.model]
    for name, value in values.items():
        section: Any = document
        for part in (*top, *name.split(".")[:-1]):
            section = section.setdefault(part, {})
        section[name.split(".")[-1]] = value
    before = load_params(path).models

    def write(file: Path) -> None:
        yaml.dump(document, file)
        changed = [name for name, section in load_params(file).models.items() if section != before[name]]
        if set(changed) - {recipes.model}:  # sections that share an anchor
            raise UserError(f"{path}: {', '.join(changed)} share a section (&anchor, *alias); write it out first")

    write_atomic(path, write)
    print(f"wrote {settings(values)} to {'.'.join(top)} of {path}")
