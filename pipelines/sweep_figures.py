"""Figures of a sweep: which values went with which scores, and how soon the best was found."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from genmodels.search_space import Dimension, Space
from pipelines.sweep import Sweep, Trial, ranked

MISSING = -0.08  # where a line passes a setting that did not apply


def draw(sweep: Sweep) -> dict[str, Figure]:
    """Figures by name; none where no trial has a score."""
    best = ranked(sweep.trials(), sweep.metric)
    if not best:
        return {}
    space = {name: _dimension(values) for name, values in sweep.info["space"].items()}
    return {"parallel_coordinates": parallel_coordinates(sweep, space, best), "best_so_far": best_so_far(sweep)}


def parallel_coordinates(sweep: Sweep, space: Space, best: list[tuple[Trial, float]]) -> Figure:
    """A line a trial through its values to its score; full lines reached the last rung, the best is red."""
    columns = [*space, sweep.metric.name]
    figure = Figure(figsize=(2 + 1.6 * len(columns), 4.5), layout="constrained")
    axes = figure.subplots()
    scores = [score for _, score in best]
    low, high = min(scores), max(scores)
    for place, (trial, score) in reversed(list(enumerate(best))):
        heights = [_height(space[name], trial.values.get(name)) for name in space]
        heights.append((score - low) / (high - low) if high > low else 0.5)
        whole = trial.status == "finished"
        style: dict[str, Any] = {"linestyle": "-" if whole else ":", "linewidth": 2.5 if place == 0 else 1.2}
        color = "tab:red" if place == 0 else "tab:blue" if whole else "0.6"
        axes.plot(heights, color=color, marker=".", **style)
    axes.set(xticks=range(len(columns)), xticklabels=columns, yticks=[], ylim=(-0.15, 1.12))
    axes.tick_params(axis="x", rotation=20)
    ends = [_ends(dimension) for dimension in space.values()] + [(f"{low:.4g}", f"{high:.4g}")]
    for i, (bottom, top) in enumerate(ends):
        axes.axvline(i, color="0.8", zorder=0)
        axes.text(i, -0.13, bottom, ha="center")
        axes.text(i, 1.05, top, ha="center")
    axes.set_title(
        f"{sweep.name}: {len(best)} trials; red: the best; dotted: stopped early; below an axis: not searched",
        fontsize=10,
    )
    return figure


def best_so_far(sweep: Sweep) -> Figure:
    """The best score among whole trials against the images that all trials had been shown by then."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    metric, spent, best = sweep.metric, 0, None
    points: list[tuple[int, float]] = []
    ended = sorted((trial for trial in sweep.trials() if trial.events()), key=lambda trial: trial.events()[-1]["time"])
    for trial in ended:
        spent, scores = spent + trial.num_images, trial.scores()
        if trial.status != "finished":
            continue
        axes.plot(spent, scores[-1], "o", color="0.6")
        best = scores[-1] if metric.better(scores[-1], best) else best
        points.append((spent, best if best is not None else math.nan))
    if points:
        axes.step(*zip(*points, strict=True), where="post", color="tab:red", label="best so far")
        axes.legend()
    axes.set(xlabel="images shown, all trials", ylabel=f"{metric.name} ({metric.direction})")
    axes.set_title(f"{sweep.name}: whole trials", fontsize=10)
    return figure


def _dimension(values: dict[str, Any]) -> Dimension:
    return Dimension(**{values["kind"]: values["values"], "when": values["when"]})


def _height(dimension: Dimension, value: Any) -> float:
    """Where a value lies on its axis, 0 to 1."""
    if value is None:
        return MISSING
    if dimension.kind == "choice":
        choices = [list(one) if isinstance(one, tuple) else one for one in dimension.values]
        return choices.index(value) / max(1, len(choices) - 1)
    low, high, at = (math.log(v) if dimension.is_log else v for v in (*dimension.values, value))
    return (at - low) / (high - low)


def _ends(dimension: Dimension) -> tuple[str, str]:
    ends = (dimension.values[0], dimension.values[-1])
    return tuple(f"{end:.3g}" if isinstance(end, float) else str(end) for end in ends)  # type: ignore[return-value]
