"""A sweep in MLflow: a parent run with figures, and a child a trial, fed from the trials' folders."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from pipelines.sweep import ENDED, Sweep, Trial, ranked
from pipelines.tracking import Tracker, connected, experiment_id

STATUS = {"finished": "FINISHED", "failed": "FAILED"}  # else KILLED: halted by the scheduler, or interrupted


class SweepTracker:
    """Sends what is new of a sweep whenever `poll` is called; a store that is away is tried again the next time."""

    def __init__(self, sweep: Sweep):
        self.sweep = sweep
        self.tags = {"model": sweep.info["config"]["model"], "sweep": sweep.name, "command": sweep.info["command"]}
        self.error: Exception | None = None
        self._trackers: dict[str, Tracker] = {}
        self._closed: set[str] = set()

    def poll(self, over: bool = False) -> None:
        """Sends points and pictures, and closes what has ended; where the sweep is `over`, everything."""
        try:
            parent = self._parent()
            for trial in self.sweep.trials():
                if trial.name not in self._closed and (trial.events() or trial.status in ENDED):
                    self._follow(trial, parent, over)
            self.error = None
        except Exception as error:  # whatever the store does, the trials go on; their events stay on disk
            self.error = error

    def close(self, status: str) -> bool:
        """Sends the rest, the figures and the end; False where the store is away, which `sync.py` then makes good."""
        self.poll(over=True)
        if self.error is None:
            try:
                self._finish(status)
            except Exception as error:
                self.error = error
        self.sweep.update(untold=None if self.error is None else status)
        return self.error is None

    def _parent(self) -> str:
        """The parent's MLflow run, made on first use."""
        info, client = self.sweep.info, connected().MlflowClient()
        if info["mlflow_run_id"] is None:
            began = int(info["created"] * 1000)
            run_id = client.create_run(experiment_id(), began, self.tags, f"sweep {self.sweep.name}").info.run_id
            self.sweep.update(mlflow_run_id=run_id)  # at once, or the next attempt would make another
            for name, value in {**info["method"], "metric": self.sweep.metric.name}.items():
                client.log_param(run_id, name, value)
            client.log_dict(run_id, info["space"], "space.json")
            return run_id
        if not self._trackers:  # it goes on
            client.update_run(info["mlflow_run_id"], status="RUNNING")
        return info["mlflow_run_id"]

    def _follow(self, trial: Trial, parent: str, over: bool) -> None:
        info = trial.info
        if trial.name not in self._trackers:
            tags = {**info["tags"], "mlflow.parentRunId": parent, "sweep": self.sweep.name}
            self._trackers[trial.name] = Tracker(trial, info["described"], tags, live=False)
        self._trackers[trial.name].replay()
        if info["status"] in ENDED or over:
            self._end(trial)

    def _end(self, trial: Trial) -> None:
        info, client = trial.info, connected().MlflowClient()
        run_id, status = info["mlflow_run_id"], STATUS.get(info["status"], "KILLED")
        if client.get_run(run_id).info.status != status:
            for name, value in {"state": info["status"], "reason": info["reason"], "values": info["values"]}.items():
                client.set_tag(run_id, name, value if isinstance(value, str) else json.dumps(value))
            if scores := trial.scores():
                client.log_metric(run_id, "sweep_score", scores[-1], step=trial.num_images)  # what trials are ranked by
            events = trial.events()
            client.set_terminated(run_id, status, int(events[-1]["time"] * 1000) if events else None)
        self._closed.add(trial.name)

    def _finish(self, status: str) -> None:
        from pipelines import sweep_figures

        client, run_id, trials = connected().MlflowClient(), self.sweep.info["mlflow_run_id"], self.sweep.trials()
        best = ranked(trials, self.sweep.metric)
        if best:
            client.log_metric(run_id, "best_score", best[0][1], step=len(trials))
            trial, score = best[0]
            words = ", ".join(f"{name} {value}" for name, value in trial.values.items())
            client.set_tag(run_id, "winner", trial.name)
            note = f"Best of {len(trials)} trials: **{trial.name}**, {self.sweep.metric.name} {score:.5g}, {words}."
            client.set_tag(run_id, "mlflow.note.content", f"{note} Figures and all trials are among the artifacts.")
        client.log_metric(run_id, "images", sum(trial.num_images for trial in trials), step=len(trials))
        client.log_dict(run_id, {"trials": [row(trial) for trial in trials]}, "trials.json")
        with tempfile.TemporaryDirectory(prefix="genmodels-") as folder:
            for name, figure in sweep_figures.draw(self.sweep).items():
                figure.savefig(Path(folder) / f"{name}.png", dpi=120)
            client.log_artifacts(run_id, folder, "figures")
        client.set_terminated(run_id, status)


def row(trial: Trial) -> dict[str, Any]:
    """A trial in one line of a table."""
    info = trial.info
    shown = {"status": info["status"], "reason": info["reason"], "images": trial.num_images}
    return {"trial": trial.name, "values": info["values"], "scores": trial.scores(), **shown}
