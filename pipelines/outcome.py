"""What comes of a finished training: a summary, a registered version, and the files that people and DVC look at."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from pipelines.project import UserError
from pipelines.run import Event, Run


def finish(run: Run, tracker: Any) -> Event:
    """Registers the best weights where that is wanted, and says what came out."""
    from mlflow.exceptions import MlflowException

    from genmodels import export
    from genmodels.metrics.evaluate import Protocol

    events = run.events()
    final = next(event for event in reversed(events) if event["type"] == "finished")
    summary: Event = {"run": run.name, "weights_sha256": final["weights"], "images": final["num_images"]}
    best = run.folder / "best"
    if not best.is_dir():
        raise UserError(f"run {run.name}: no snapshot has a finite score, nothing to register (see {run.events_file})")
    shown = export.read_config(best)["progress"]["num_images"]
    snapshot = next(e for e in reversed(events) if e["type"] == "snapshot" and e["num_images"] == shown)
    rates = [event["values"]["images_per_second"] for event in events if event["type"] == "log"]
    summary |= {"score": snapshot["score"], "best_at": shown, "images_per_second": sorted(rates)[len(rates) // 2]}
    protocol = Protocol(**snapshot["protocol"]).digest
    summary |= {"protocol": protocol}
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
        print(f"warning: MLflow is away ({error}); {waits}", file=sys.stderr)
    return summary


def register(run: Run, summary: Event) -> Event:
    """Makes a finished run's best weights a version; what that adds to its summary."""
    from pipelines import registry

    run_id, tags = run.info["mlflow_run_id"], {"run": run.name, **run.info["tags"]}
    version, champion = registry.register(run.folder / "best", run_id, summary["score"], summary["protocol"], tags)
    print(f"registered {run.config.model} version {version}{', the champion' if champion else ''}")
    return {"mlflow_run_id": run_id, "version": version}


def publish(run: Run, summary: Event, out: Path) -> None:
    """Puts what people and DVC look at into `out`: export, samples, curves as tables, summary."""
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
        _write_csv(
            folder / "scores.csv",
            [{"num_images": e["num_images"], "stage": e["stage"], **e["scores"]} for e in snapshots],
        )
        logs = [event for event in events if event["type"] == "log"]
        rows = [
            {"num_images": event["num_images"], "term": name, "value": value}
            for event in logs
            for name, value in event["values"].items()
            if isinstance(value, float)
        ]
        _write_csv(folder / "curves.csv", rows)

    out.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(out.absolute(), write)


def _write_csv(path: Path, rows: list[Event]) -> None:
    import csv

    with path.open("w", newline="") as file:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
