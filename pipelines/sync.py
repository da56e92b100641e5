"""Sends to MLflow what it has not got of the runs on disk, each event once; safe to repeat, and beside trainings.

python pipelines/sync.py        # after a tracking server was away
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipelines.project import Overrides, UserError, command, params, storage

if TYPE_CHECKING:
    from pipelines.run import Run

STATUS = {"finished": "FINISHED", "failed": "FAILED"}  # of a run that nobody holds; else KILLED


@command
def main(overrides: Overrides = None) -> None:
    """Replays events, registers what should be registered, and says how each run ended."""
    from pipelines.run import all_runs, held

    folder = storage(params(overrides).compute)
    runs = [run for run in all_runs(folder) if run.events() and not held(run)]
    with away_in_one_line():
        for sweep, done in ended_sweeps(folder):
            print(f"{sweep.name}: {done}", flush=True)
        behind = [run for run in runs if not is_complete(run)]
        for run in behind:
            print(f"{run.name}: {', '.join(synced(run))}", flush=True)
    print(f"{len(runs)} runs, {len(runs) - len(behind)} of them were complete")


def ended_sweeps(folder: Path) -> Iterator[tuple[Run, str]]:
    """Marks the sweeps that ended without a word, and tells MLflow of those that ended while it was away."""
    from pipelines.run import held
    from pipelines.sweep import Sweep
    from pipelines.sweep_tracking import SweepTracker
    from pipelines.tracking import connected

    for sweep in [Sweep(file.parent) for file in folder.glob("sweeps/*/run.json")]:
        info = sweep.info
        if held(sweep):
            continue
        if info["status"] == "running":
            if run_id := info["mlflow_run_id"]:
                connected().MlflowClient().set_terminated(run_id, "KILLED")
            sweep.update(status="stopped")
            yield sweep, "marked KILLED"
        elif status := info.get("untold"):
            tracker = SweepTracker(sweep)
            if not tracker.close(status):
                raise tracker.error or OSError("unknown")
            yield sweep, f"its trials, figures and end sent, {status}"


@contextmanager
def away_in_one_line() -> Iterator[None]:
    """Makes a tracking store that cannot be reached a UserError."""
    from mlflow.exceptions import MlflowException

    from genmodels.credentials import masked

    try:
        yield
    except (OSError, MlflowException) as error:
        reason = masked(str(error).splitlines()[0])
        raise UserError(f"MLflow cannot be reached ({reason}); repeat this when it is back") from None


def synced(run: Run) -> list[str]:
    """Brings a run's MLflow run up to date and says what was missing; UserError where another process holds the run."""
    from pipelines.run import owned

    with owned(run):
        return _synced(run)


def _synced(run: Run) -> list[str]:
    from pipelines import outcome
    from pipelines.tracking import Tracker, connected, end

    info, done = run.info, []
    tracker = Tracker(run, info.get("described", info["config"]), info.get("tags", {}), live=False)
    if number := tracker.replay():
        done.append(f"{number} points and pictures sent")
    if info["status"] == "running":
        run.update(status="killed")
    status, run_id, client = ended(info), run.info["mlflow_run_id"], connected().MlflowClient()
    if client.get_run(run_id).info.status != status:
        end(run_id, status, int(run.events()[-1]["time"] * 1000))
        done.append(f"marked {status}")
    if lacks_version(info):
        result = {**info["result"], **outcome.register(run, info["result"])}
        run.update(result=result)
        done.append(f"registered as version {result['version']}")
    return done


def is_complete(run: Run) -> bool:
    """Whether MLflow has all of an idle run: events, version, how it ended; or somebody deleted it there."""
    from mlflow.exceptions import MlflowException

    from pipelines.tracking import connected

    info = run.info
    if not info["mlflow_run_id"] or info["status"] == "running":
        return False
    try:
        stored = connected().MlflowClient().get_run(info["mlflow_run_id"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    steps = {metric.key: metric.step for metric in stored.data._metric_objs}
    ranked = [event for event in run.events() if event["type"] == "log" or math.isfinite(event.get("score", math.nan))]
    names = {"log": "images_per_second", "snapshot": "score"}
    arrived = all(event["num_images"] <= steps.get(names[event["type"]], -1) for event in ranked)
    return stored.info.lifecycle_stage == "deleted" or (
        arrived and not lacks_version(info) and stored.info.status == ended(info)
    )


def lacks_version(info: dict[str, Any]) -> bool:
    """Whether a run should have been registered and was not."""
    return bool(info.get("result") and info["registered"] and "version" not in info["result"])


def ended(info: dict[str, Any]) -> str:
    """MLflow's word for how a run ended that nobody holds."""
    return STATUS.get(info["status"], "KILLED")


if __name__ == "__main__":
    typer.run(main)
