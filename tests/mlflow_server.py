"""A real `mlflow server` for tests, and what must have arrived there."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

from pipelines import tracking
from pipelines.run import Run


class Server:
    """A real `mlflow server` that can be killed and started again on its port and store."""

    def __init__(self, folder: Path, store: str | None = None, artifacts: str | None = None):
        self.store, self.artifacts = store or f"sqlite:///{folder}/store.db", artifacts or str(folder / "artifacts")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder, self.process = folder, None
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        store = ["--backend-store-uri", self.store, "--workers", "1"]
        artifacts = ["--artifacts-destination", self.artifacts]
        place = ["--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *place],
                env={
                    **os.environ,
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                    "MLFLOW_S3_ENDPOINT_URL": os.environ.get("AWS_ENDPOINT_URL", ""),
                },
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 240
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.5)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """Ends all its processes at once."""
        if self.process:
            family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
            for process in family:
                process.kill()
            self.process.wait()
            psutil.wait_procs(family, timeout=10)
            self.process = None


def client():
    return tracking.connected().MlflowClient()


def assert_all_arrived_once(run: Run) -> None:
    """Every value of every event is in MLflow, once; every snapshot has one picture."""
    run_id = run.info["mlflow_run_id"]
    logs = [event for event in run.events() if event["type"] == "log"]
    for name in (name for name, value in logs[0]["values"].items() if isinstance(value, float)):
        points = client().get_metric_history(run_id, name)
        arrived = sorted((point.step, point.value) for point in points)
        noted = [(event["num_images"], event["values"][name]) for event in logs if name in event["values"]]
        assert arrived == noted, f"{name}: {arrived}, not {noted}"
    snapshots = [event["num_images"] for event in run.events() if event["type"] == "snapshot"]
    assert sorted(point.step for point in client().get_metric_history(run_id, "score")) == snapshots
    pictures = [file.path for file in client().list_artifacts(run_id, "images") if file.path.endswith(".png")]
    assert sorted(int(path.split("+step+")[1].split("+")[0]) for path in pictures) == snapshots
