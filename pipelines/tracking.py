"""The only place that knows MLflow: follows a run's events into the tracking store, registers, finds versions."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from genmodels import export
from genmodels.model import Metric, model_class
from pipelines.project import UserError, root, store_root
from pipelines.run import Event, Run, read_events

EXPERIMENT = "genmodels"
MAX_BATCH = 900  # metrics a call; MLflow takes 1,000


def _mlflow() -> Any:
    """MLflow, imported late (1.6 s), quick to give up on a dead server, pointed at the project's store."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri())
    return mlflow


def uri() -> str:
    """$MLFLOW_TRACKING_URI, else the SQLite file at the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store_root() / 'mlflow.db'}"


def experiment_id() -> str:
    """The project's experiment, created with the store on first use."""
    mlflow = _mlflow()
    with _exclusive("store"):  # several processes that create a new SQLite store at once destroy it
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return experiment.experiment_id
        local = uri().startswith("sqlite")
        return client.create_experiment(EXPERIMENT, str(store_root() / "mlartifacts") if local else None)


class Tracker:
    """Copies a run's events to its MLflow run from a thread of its own, so that training never waits for MLflow.

    What is sent is decided by what the store already holds, so each event arrives once, after any crash.
    """

    def __init__(self, run: Run, params: dict[str, Any], tags: dict[str, str]):
        self.run, self.params, self.tags = run, params, tags
        self.error: Exception | None = None
        self.behind = False  # whether events wait for the store
        self._offset = 0
        self._sent: dict[str, int] = {}
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
                _mlflow().MlflowClient().set_terminated(run_id, status)
        return not self.behind

    def _follow(self) -> None:
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

    def _send_new(self) -> None:
        if not self._monitor:
            self._connect()
        events, offset = read_events(self.run.events_file, self._offset)
        fresh = [event for event in events if event["num_images"] > self._sent.get(event["type"], -1)]
        run_id = self.run.info["mlflow_run_id"]
        client = _mlflow().MlflowClient()
        for event in fresh:
            if event["type"] == "snapshot":
                self._send_picture(client, run_id, event)
        metrics = [metric for event in fresh for metric in _metrics(event)]
        for start in range(0, len(metrics), MAX_BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH])
        for event in fresh:
            self._sent[event["type"]] = event["num_images"]
        self._offset = offset

    def _send_picture(self, client: Any, run_id: str, event: Event) -> None:
        from PIL import Image

        with Image.open(self.run.folder / event["picture"]) as picture:
            client.log_image(run_id, picture.convert("RGB"), key="samples/fixed_z", step=event["num_images"])

    def _connect(self) -> None:
        """Finds or creates the MLflow run, and learns from it what it has already."""
        mlflow = _mlflow()
        client = mlflow.MlflowClient()
        run_id = self.run.info["mlflow_run_id"]
        if run_id is None or not _exists(client, run_id):
            run_id = client.create_run(experiment_id(), run_name=self.run.name, tags=self.tags).info.run_id
            self.run.update(mlflow_run_id=run_id)
            _log_params(client, run_id, self.params)
            _log_data(client, run_id, self.run.info)
        client.update_run(run_id, status="RUNNING")
        data = client.get_run(run_id).data
        steps = {metric.key: metric.step for metric in data._metric_objs}
        self._sent = {"log": steps.get("images_per_second", -1), "snapshot": steps.get("score", -1)}
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(run_id, resume_logging=True)
        self._monitor.start()


def _metrics(event: Event) -> Iterator[Any]:
    """The points that an event adds to the curves; images shown are their x axis."""
    from mlflow.entities import Metric as Point

    values = {"log": event.get("values", {}), "snapshot": event.get("scores", {})}.get(event["type"], {})
    if event["type"] == "snapshot":
        values = {f"scores/{name}": value for name, value in values.items()} | {"score": event["score"]}
    for name, value in values.items():
        if isinstance(value, int | float) and not math.isnan(value):
            yield Point(name, float(value), int(event["time"] * 1000), event["num_images"])


def register(
    folder: Path, run_id: str | None, score: float | None, protocol: str, tags: dict[str, str]
) -> tuple[int, bool]:
    """Registers a sampling folder as a version of its model, once per weights; (version, whether it became champion).

    The best by the model's declared metric gets alias `champion`; scores of unlike protocols are not compared:
    there the newer protocol's version takes over, and `champion-<data set>` stays with the best of each data set.
    """
    mlflow = _mlflow()
    client, sampler = mlflow.MlflowClient(), export.load(folder)
    name, sha256 = sampler.info["model"], sampler.info["sha256"]
    dataset = sampler.info["data"]["name"]
    with _exclusive(f"register-{name}"):
        number = _version_of(client, name, sha256)
        if number is None:
            number = _new_version(mlflow, folder, name, run_id)
        values = {"sha256": sha256, "protocol": protocol, "dataset": dataset, **tags}
        if score is not None:
            values["score"] = repr(score)
        for key, value in values.items():
            client.set_model_version_tag(name, str(number), key, value)
        for alias in (f"champion-{dataset}", "champion"):
            if _wins(client, name, alias, number, score, protocol):
                client.set_registered_model_alias(name, alias, str(number))
        return number, int(client.get_model_version_by_alias(name, "champion").version) == number


def _version_of(client: Any, name: str, sha256: str) -> int | None:
    """The version that holds these weights already."""
    versions = client.search_model_versions(f"name = '{name}'")
    return next((int(version.version) for version in versions if version.tags.get("sha256") == sha256), None)


def _new_version(mlflow: Any, folder: Path, name: str, run_id: str | None) -> int:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec("long", "num")]), params=ParamSchema([ParamSpec("seed", "long", 0)])
    )
    client = mlflow.MlflowClient()
    was = client.get_run(run_id).info.status if run_id else "FINISHED"
    name_if_new = None if run_id else f"register-{name}"  # given with a run id, it would rename that run
    with warnings.catch_warnings(), mlflow.start_run(run_id, experiment_id(), name_if_new) as active:
        warnings.simplefilter("ignore")  # MLflow would like an input example, which it would run
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"export": str(folder)},
            signature=signature,
            pip_requirements=["torch", "numpy", "pydantic", "safetensors", "pillow"],
        )
    client.set_terminated(active.info.run_id, was if was != "RUNNING" else "FINISHED")
    with suppress(mlflow.exceptions.MlflowException):  # it exists already
        client.create_registered_model(name)
    created = client.create_model_version(name, info.model_uri, active.info.run_id, model_id=info.model_id)
    return int(created.version)


def _wins(client: Any, name: str, alias: str, number: int, score: float | None, protocol: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        holder = client.get_model_version_by_alias(name, alias)
    except MlflowException:
        return True
    if int(holder.version) == number or score is None or not math.isfinite(score):
        return False
    metric: Metric = model_class(name).metric
    held = float(holder.tags["score"]) if "score" in holder.tags else None
    return holder.tags.get("protocol") != protocol or metric.better(score, held)


def find(reference: str) -> Path:
    """The sampling folder of NAME@ALIAS, NAME/VERSION, an MLflow run id, or a folder; UserError with the choices."""
    if Path(reference).is_dir():
        return Path(reference)
    mlflow = _mlflow()
    from mlflow.exceptions import MlflowException

    try:
        if re.fullmatch(r"[\w-]+[@/][\w-]+", reference):
            path = Path(mlflow.artifacts.download_artifacts(f"models:/{reference}"))
        elif re.fullmatch(r"[0-9a-f]{32}", reference):
            models = mlflow.search_logged_models(
                [experiment_id()], filter_string=f"source_run_id = '{reference}'", output_format="list"
            )
            if not models:
                raise UserError(f"run {reference} has no registered model in {uri()}")
            path = Path(mlflow.artifacts.download_artifacts(models[0].model_uri))
        else:
            raise UserError(f"{reference!r} is no folder, run id, NAME@ALIAS or NAME/VERSION{_choices(mlflow)}")
    except MlflowException as error:
        raise UserError(f"{reference!r} not found in {uri()}: {str(error).splitlines()[0]}{_choices(mlflow)}") from None
    found = next(path.glob("artifacts/*/config.json"), None)  # MLflow keeps the name that the folder had
    if found is None:
        raise UserError(f"{reference!r} holds no sampling folder; was it registered by another program?")
    return found.parent


def log_scores(run_id: str, scores: dict[str, float], details: dict[str, Any], step: int) -> None:
    """Adds the final evaluation to a run: metrics `evaluation/…`, and the whole of it as a file."""
    from mlflow.entities import Metric as Point

    client, now = _mlflow().MlflowClient(), int(time.time() * 1000)
    points = [Point(f"evaluation/{name}", value, now, step) for name, value in scores.items() if math.isfinite(value)]
    client.log_batch(run_id, metrics=points)
    client.log_dict(run_id, details, "evaluation.json")


def git_tags() -> dict[str, str]:
    """Commit and dirtiness of the project, as tags; nothing outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root(), capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "mlflow.source.git.commit": git("rev-parse", "HEAD"),
            "git_dirty": str(bool(git("status", "--porcelain", "--", ".", ":!dvc.lock"))),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}


def _log_params(client: Any, run_id: str, params: dict[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [Param(key, str(value)[:6000]) for key, value in flatten(params).items()]
    for start in range(0, len(flat), 100):
        client.log_batch(run_id, params=flat[start : start + 100])


def _log_data(client: Any, run_id: str, info: dict[str, Any]) -> None:
    """The data set as the run's input: name, digest, where the shards are."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    spec = info["data"]
    source, profile = json.dumps({"shards": info["shards"]}), json.dumps(spec)
    dataset = Dataset(spec["name"], spec["digest"][:36], "local", source, profile=profile)
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


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


def _choices(mlflow: Any) -> str:
    names = [model.name for model in mlflow.MlflowClient().search_registered_models()]
    return f"; registered: {', '.join(names) or 'nothing yet'}"


@contextmanager
def _exclusive(name: str) -> Iterator[None]:
    """One process of this machine at a time."""
    folder = store_root() / "data" / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
