"""What comes of a finished training: a summary, a registered version, and the files that people and DVC look at."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from genmodels.config import ComputeConfig
from genmodels.credentials import masked
from pipelines import places
from pipelines.project import UserError, root, shard_cache, shards, storage, store_root
from pipelines.run import Event, Run

WRITTEN = {"export", "samples.png", "metrics.json", "run.json", "scores.csv", "curves.csv"}


def finish(run: Run, tracker: Any) -> Event:
    """Registers the best weights where that is wanted, and says what came out."""
    from mlflow.exceptions import MlflowException

    summary = summarize(run)
    error = tracker.error if tracker.behind else None
    if run.info["registered"] and not tracker.behind:
        try:
            summary |= register(run, summary)
            model = f"{run.config.model}/{summary['version']}"
            print(f"  sample it: python pipelines/sample.py --model {model} --num 64 --out grid.png")
        except (OSError, MlflowException) as away:
            error = away
    if error:
        waits = f"the run's events wait in {run.events_file}; when it is back: python pipelines/sync.py"
        print(f"warning: MLflow is away ({masked(str(error))}); {waits}", file=sys.stderr)
    return summary


def summarize(run: Run) -> Event:
    """What became of a run that nobody holds: how it ended, its best snapshot's score; UserError where it has none."""
    from genmodels.metrics.evaluate import Protocol

    snapshot, events = best_snapshot(run), run.events()
    last = last_word(events)
    rates = sorted(event["values"]["images_per_second"] for event in events if event["type"] == "log")
    return {
        "run": run.name,
        "weights_sha256": last.get("weights"),  # of the end, which only a finished training has
        "images": last["num_images"],
        "ended": ended(events, run.config.train.num_images),
        "score": snapshot["score"],
        "best_at": snapshot["num_images"],
        "images_per_second": rates[len(rates) // 2] if rates else None,
        "protocol": Protocol(**snapshot["protocol"]).digest,
    }


def best_snapshot(run: Run) -> Event:
    """The snapshot whose weights lie in the run's `best` folder; UserError where there is none."""
    from genmodels import export

    best = run.folder / "best"
    if not best.is_dir():
        raise UserError(f"run {run.name}: no snapshot has a finite score, nothing to register (see {run.events_file})")
    shown = export.read_config(best)["progress"]["num_images"]
    snapshots = [e for e in run.events() if e["type"] == "snapshot" and e["num_images"] == shown]
    if not snapshots:
        again = run.info.get("command", "the command that began it")
        raise UserError(f"run {run.name} was killed before it noted the score of its best; it goes on with: {again}")
    return snapshots[-1]


def last_word(events: list[Event]) -> Event:
    """The event that says how a training ended: once finished it stays so, even if a driver then took it up again."""
    return next((event for event in reversed(events) if event["type"] == "finished"), events[-1])


def ended(events: list[Event], planned: int) -> str:
    """How a training ended, in words."""
    last = last_word(events)
    if last["type"] == "finished":
        return "finished"
    shown = f"after {last['num_images']:,} of {planned:,} images"
    return f"failed {shown}: {last['reason']}" if last["type"] == "failed" else f"ended {shown}"


def register(run: Run, summary: Event) -> Event:
    """Makes a finished run's best weights a version; what that adds to its summary."""
    from pipelines import registry

    run_id, tags = run.info["mlflow_run_id"], {"run": run.name, "ended": summary["ended"], **run.info["tags"]}
    version, champion = registry.register(run.folder / "best", run_id, summary["score"], summary["protocol"], tags)
    print(f"registered {run.config.model} version {version}{', the champion' if champion else ''}")
    return {"mlflow_run_id": run_id, "version": version, "champion": champion}


def check_out(out: Path, compute: ComputeConfig) -> None:
    """UserError, before anything starts, where `publish` would fail or take away what it did not write."""
    for folder in (out, out.absolute().parent):
        places.check_folder(folder)
    place, runs = out.resolve(), storage(compute).resolve()
    data = (runs, shards("any").parent, root() / "data/raw", shard_cache(compute).folder, store_root() / "mlartifacts")
    for kept in (root(), store_root(), *data):
        if kept.resolve().is_relative_to(place):
            raise UserError(f"--out {out} would replace {kept}; give a folder of its own, as data/models/NAME")
    if place.parent == runs or place.is_mount():
        raise UserError(
            f"--out {out} lies among the runs, or is a mount; give a folder of its own, as data/models/NAME"
        )
    held = {entry.name for entry in place.iterdir()} - {".gitignore"} if place.is_dir() else set()  # which is DVC's
    ours = (place / "export/config.json").is_file()
    if foreign := held - WRITTEN if ours else held:
        raise UserError(f"--out {out} holds {min(foreign)}, which is no training's and would go; give a new folder")


def publish(run: Run, summary: Event, out: Path) -> None:
    """Replaces `out` by what people and DVC look at: export, samples, curves as tables, summary."""
    from genmodels.files import replace_folder

    def write(folder: Path) -> None:
        shutil.copytree(run.folder / "best", folder / "export")
        events = run.events()
        snapshots = [event for event in events if event["type"] == "snapshot"]
        shutil.copy(run.folder / snapshots[-1]["picture"], folder / "samples.png")
        (folder / "metrics.json").write_text(
            json.dumps({"score": summary["score"], "images_per_second": round(summary["images_per_second"], 1)})
        )
        (folder / "run.json").write_text(json.dumps(summary, indent=1))
        _write_csv(folder / "scores.csv", history(events))
        logs = [event for event in events if event["type"] == "log"]
        rows = [
            {"num_images": event["num_images"], "term": name, "value": value}
            for event in logs
            for name, value in event["values"].items()
            if isinstance(value, float)
        ]
        _write_csv(folder / "curves.csv", rows)

    out.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(out.resolve(), write)


def history(events: list[Event]) -> list[Event]:
    """A row a snapshot: images shown, stage, the scores' protocol and scores."""
    from genmodels.metrics.evaluate import Protocol

    snapshots = [event for event in events if event["type"] == "snapshot"]
    return [
        {
            "num_images": e["num_images"],
            "stage": e["stage"],
            "protocol": Protocol(**e["protocol"]).digest,
            **e["scores"],
        }
        for e in snapshots
    ]


def _write_csv(path: Path, rows: list[Event]) -> None:
    import csv

    with path.open("w", newline="") as file:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
