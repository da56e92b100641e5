"""MLflow's runs: events are followed into the tracking store. registry.py and dataset_input.py know MLflow too."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from genmodels import files
from pipelines import dataset_input
from pipelines.project import root, store_root
from pipelines.run import Event, Run, read_events

EXPERIMENT = "genmodels"
MAX_BATCH = 900  # metrics a call; MLflow takes 1,000
PATIENCE = 10.0  # seconds that MLflow waits for a first step


def connected() -> Any:
    """MLflow, imported late (1.6 s), quick to give up on a dead server, pointed at the project's store."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri())
    return mlflow


def uri() -> str:
    """$MLFLOW_TRACKING_URI, else the SQLite file at the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store_root() / 'mlflow.db'}"


def known_experiment() -> str | None:
    """The project's experiment, if there is one; makes neither store nor experiment."""
    if uri().startswith("sqlite:///") and not Path(uri().removeprefix("sqlite:///")).exists():
        return None
    experiment = connected().MlflowClient().get_experiment_by_name(EXPERIMENT)
    return experiment and experiment.experiment_id


def experiment_id() -> str:
    """The project's experiment, created with the store on first use."""
    mlflow = connected()
    with exclusive("store"):  # several processes that create a new SQLite store at once destroy it
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return experiment.experiment_id
        local = uri().startswith("sqlite")
        return client.create_experiment(EXPERIMENT, str(store_root() / "mlartifacts") if local else None)


class Tracker:
    """Copies a run's events to its MLflow run from a thread of its own, so that training never waits for MLflow.

    What is sent is decided by what the store already holds, so each event arrives once, after any crash. One that is
    not `live` does so in the caller's thread, by `replay`.
    """

    def __init__(self, run: Run, params: dict[str, Any], tags: dict[str, str], live: bool = True):
        self.run, self.params, self.tags, self.live = run, params, tags, live
        self.error: Exception | None = None
        self.behind = False  # whether events wait for the store
        self._offset = 0
        self._sent: dict[str, int] = {}
        self._pictured: set[int] = set()
        self._connected = False
        self._monitor: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow-tracker", daemon=True)

    def __enter__(self) -> Tracker:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        interrupted = isinstance(exc[1], KeyboardInterrupt | SystemExit)
        self.close("KILLED" if interrupted else "FAILED" if exc[1] else "FINISHED")

    def close(self, status: str, timeout: float = 60.0) -> bool:
        """Sends what is left and ends the MLflow run; False if the store could not be reached in time."""
        if self._thread.is_alive():
            self._stop.set()
            self._thread.join(timeout)
            if self._thread.is_alive():  # a store that neither answers nor refuses
                self.error, self.behind = self.error or TimeoutError(f"no answer in {timeout:g} s"), True
            run_id = self.run.info["mlflow_run_id"]
            if run_id and not self.behind:
                try:
                    end(run_id, status)
                except Exception as error:  # gone since; `pipelines/sync.py` says how the run ended
                    self.error, self.behind = error, True
        return not self.behind

    def replay(self) -> int:
        """Sends what the store has not got; how many points and pictures that were."""
        return self._send_new()

    def _follow(self) -> None:
        self._let_begin()
        pause = 1.0
        while True:
            last = self._stop.is_set()
            try:
                self._send_new()
                self.behind, pause = False, 1.0
            except Exception as error:  # whatever the store does, training goes on; the events stay on disk
                self.error, self.behind, pause = error, True, min(2 * pause, 30.0)
            if last:
                if self._monitor:
                    self._monitor.finish()
                return
            self._stop.wait(pause)

    def _let_begin(self) -> None:
        """Waits for the first step for a while: importing MLflow holds up a training in this process by its 2 s."""
        latest = time.monotonic() + PATIENCE
        while not self._stop.is_set() and time.monotonic() < latest:
            if any(event["num_images"] for event in self.run.events()):
                return
            self._stop.wait(0.2)

    def _send_new(self) -> int:
        if not self._connected:
            self._connect()
        events, offset = read_events(self.run.events_file, self._offset)
        fresh = [event for event in events if event["num_images"] > self._sent.get(event["type"], -1)]
        pictured = [e for e in fresh if e["type"] == "snapshot" and e["num_images"] not in self._pictured]
        run_id = self.run.info["mlflow_run_id"]
        client = connected().MlflowClient()
        for event in pictured:
            self._send_picture(client, run_id, event)
            self._pictured.add(event["num_images"])
        batches = list(_batches(fresh))
        for batch in batches:
            client.log_batch(run_id, metrics=batch)
        for event in fresh:
            self._sent[event["type"]] = event["num_images"]
        stage = next((event["stage"] for event in reversed(fresh) if event["type"] == "snapshot"), None)
        if stage:
            client.set_tag(run_id, "stage", stage)
        self._offset = offset
        return sum(map(len, batches)) + len(pictured)

    def _send_picture(self, client: Any, run_id: str, event: Event) -> None:
        from PIL import Image

        with Image.open(self.run.folder / event["picture"]) as picture:
            client.log_image(run_id, picture.convert("RGB"), key="samples/fixed_z", step=event["num_images"])

    def _connect(self) -> None:
        """Finds or creates the MLflow run, and learns from it what it has already."""
        experiment = experiment_id()  # before any client: one that finds no store makes it, beside another that does
        client = connected().MlflowClient()
        run_id = self.run.info["mlflow_run_id"]
        if run_id is None or not _exists(client, run_id):
            began = int(self.run.info["created"] * 1000)
            run_id = client.create_run(experiment, began, self.tags, self.run.name).info.run_id
            self.run.update(mlflow_run_id=run_id)
        stored = client.get_run(run_id)
        _log_params(client, run_id, self.params, known=stored.data.params)
        if not (stored.inputs and stored.inputs.dataset_inputs):
            dataset_input.log(client, run_id, self.run)
        steps = {metric.key: metric.step for metric in stored.data._metric_objs}
        self._sent = {"log": steps.get("images_per_second", -1), "snapshot": steps.get("score", -1)}
        names = [file.path for file in client.list_artifacts(run_id, "images")]
        self._pictured = {int(name.split("+step+")[1].split("+")[0]) for name in names if name.endswith(".webp")}
        if self.live:
            self._begin(client, run_id)
        self._connected = True

    def _begin(self, client: Any, run_id: str) -> None:
        client.update_run(run_id, status="RUNNING")
        client.set_tag(run_id, "status", "running")
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(run_id, resume_logging=True)
        self._monitor.start()


def end(run_id: str, status: str, end_time: int | None = None) -> None:
    """Says how a run ended; end_time in milliseconds, or now."""
    client = connected().MlflowClient()
    client.set_terminated(run_id, status, end_time)
    client.set_tag(run_id, "status", status.lower())


def _batches(events: list[Event]) -> Iterator[list[Any]]:
    """Points of whole events, as many as a call takes: a batch that arrived says which events did."""
    batch: list[Any] = []
    for event in events:
        points = list(_metrics(event))
        if len(batch) + len(points) > MAX_BATCH:
            yield batch
            batch = []
        batch += points
    if batch:
        yield batch


def _metrics(event: Event) -> Iterator[Any]:
    """The points that an event adds to the curves; images shown are their x axis."""
    from mlflow.entities import Metric as Point

    values = {"log": event.get("values", {}), "snapshot": event.get("scores", {})}.get(event["type"], {})
    if event["type"] == "snapshot":
        values = {f"scores/{name}": value for name, value in values.items()} | {"score": event["score"]}
    for name, value in values.items():
        if isinstance(value, int | float) and not math.isnan(value):
            yield Point(name, float(value), int(event["time"] * 1000), event["num_images"])


def log_scores(run_id: str, scores: dict[str, float], details: dict[str, Any], pictures: list[Path]) -> None:
    """Adds the final evaluation to a run: metrics `evaluation/…`, the whole of it as a file, and its pictures."""
    from mlflow.entities import Metric as Point

    client, now = connected().MlflowClient(), int(time.time() * 1000)
    step = details["num_images"]
    points = [Point(f"evaluation/{name}", value, now, step) for name, value in scores.items() if math.isfinite(value)]
    client.log_batch(run_id, metrics=points)
    client.log_dict(run_id, details, "evaluation.json")
    for picture in pictures:
        client.log_artifact(run_id, str(picture), "evaluation")


def git_tags() -> dict[str, str]:
    """Commit and dirtiness of the project, as tags; nothing outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root(), capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "mlflow.source.type": "LOCAL",  # without it the UI hides the commit
            "mlflow.source.git.commit": git("rev-parse", "HEAD"),
            "git_dirty": str(bool(git("status", "--porcelain", "--", ".", ":!dvc.lock"))),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}


def _log_params(client: Any, run_id: str, params: dict[str, Any], known: dict[str, str]) -> None:
    """Those that the run does not have yet: a store that went away may have taken a part of them."""
    from mlflow.entities import Param

    flat = [Param(key, str(value)[:6000]) for key, value in flatten(params).items() if key not in known]
    for start in range(0, len(flat), 100):
        client.log_batch(run_id, params=flat[start : start + 100])


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'train': {'seed': 0}} -> {'train.seed': 0}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _exists(client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def exclusive(name: str, notice: str = "") -> AbstractContextManager[None]:
    """One process of this machine at a time; the others print `notice` and wait."""
    return files.exclusive(store_root() / "data" / "runs" / f".{name}.lock", notice)
