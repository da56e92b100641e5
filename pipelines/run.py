"""One training on disk: identity, owner, events. The folder is all that workers and driver share.

data/runs/<model>-<identity>-<n>/
    run.json        configuration, data, status, MLflow run
    lock            held by the driver; names it
    attempt         the driver's token: a worker that finds another one ends
    request         what the driver asks of the workers: nothing, 'save' or 'stop'
    events.jsonl    what happened, one JSON object a line; MLflow is fed from it
    checkpoints/    training states
    contact.png     some images of the data set
    samples/        a grid of fixed latents at every snapshot
    best/  last/    sampling folders
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genmodels.config import RunConfig
from genmodels.files import write_json
from pipelines.project import UserError

Event = dict[str, Any]
_updating = threading.Lock()  # a sweep's tracker and its search write the same run.json


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name, which names the run everywhere."""
        return self.folder.name

    @property
    def place(self) -> str:
        """Its path in a store: its name, that of its sweep before it."""
        sweep = self.folder.parent
        return f"{sweep.name}/{self.name}" if sweep.parent.name == "sweeps" else self.name

    @property
    def info(self) -> dict[str, Any]:
        """The content of run.json."""
        return json.loads((self.folder / "run.json").read_text())

    @property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        return RunConfig.from_json(self.info["config"])

    @property
    def events_file(self) -> Path:
        """The event log."""
        return self.folder / "events.jsonl"

    @property
    def data_picture(self) -> Path:
        """The contact sheet of the run's data set."""
        return self.folder / "contact.png"

    def ask(self, word: str) -> None:
        """Asks the workers for something: 'save', a checkpoint now; 'stop', and the end after it."""
        (self.folder / "request").write_text(word)

    def asked(self) -> str:
        """What the driver asked for last; opened anew, since NFS shows the latest content to who opens a file."""
        return (self.folder / "request").read_text()

    def update(self, **values: Any) -> None:
        """Changes entries of run.json."""
        with _updating:
            write_json(self.folder / "run.json", {**self.info, **values})

    def events(self) -> list[Event]:
        """All whole events so far."""
        return list(read_events(self.events_file)[0])


def open_run(storage: Path, config: RunConfig, shards: Path, data_digest: str) -> Run:
    """The unfinished run of this identity, or a new one."""
    identity = f"{config.model}-{config.digest(data_digest)}"
    number = 1
    while (storage / f"{identity}-{number}" / "run.json").is_file():
        run = Run(storage / f"{identity}-{number}")
        if run.info["status"] != "finished":
            return run
        number += 1
    run = Run(storage / f"{identity}-{number}")
    run.folder.mkdir(parents=True, exist_ok=True)
    info = {"config": config.to_json(), "shards": str(shards), "data_digest": data_digest, "status": "new"}
    write_json(run.folder / "run.json", {**info, "created": time.time(), "mlflow_run_id": None})
    return run


def newest(storage: Path, config: RunConfig, data_digest: str) -> Run | None:
    """The newest run of an identity that is finished."""
    identity = f"{config.model}-{config.digest(data_digest)}"
    runs = [Run(file.parent) for file in storage.glob(f"{identity}-*/run.json")]
    finished = [run for run in runs if run.info["status"] == "finished"]
    return max(finished, key=lambda run: int(run.name.rpartition("-")[2]), default=None)


@contextmanager
def owned(run: Run) -> Iterator[str]:
    """Holds the run for this process and yields the attempt's token; UserError names another owner."""
    with (run.folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(f"run {run.name} is held by {lock.read().strip()}; wait for it or end it") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        attempt = uuid.uuid4().hex
        (run.folder / "attempt").write_text(attempt)
        run.ask("")
        yield attempt


def held(run: Run) -> bool:
    """Whether a process holds the run or its sweep; the kernel lets go of a dead one's lock."""
    sweep = run.folder.parent / "lock"
    return locked(run.folder / "lock") or (sweep.is_file() and locked(sweep))


def locked(file: Path) -> bool:
    """Whether a process holds a lock file."""
    with file.open("a+") as lock:  # NFS gives no shared lock on what is open for writing alone
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def all_runs(storage: Path) -> list[Run]:
    """Every run in a storage folder, trials of sweeps among them, the oldest first."""
    runs = [Run(file.parent) for pattern in ("*", "sweeps/*/trial-*") for file in storage.glob(f"{pattern}/run.json")]
    return sorted(runs, key=lambda run: run.info["created"])


class EventLog:
    """Appends events of one attempt; what an earlier attempt wrote already is not written twice."""

    def __init__(self, run: Run, attempt: str):
        self._run, self._attempt = run, attempt
        events, size = read_events(run.events_file)
        if run.events_file.exists():
            os.truncate(run.events_file, size)  # a line torn by a crash
        self._last: dict[str, int] = {event["type"]: event["num_images"] for event in events}

    def add(self, kind: str, num_images: int, **values: Any) -> bool:
        """Appends one event unless that image count has it already; whether it did."""
        self.check_attempt()
        if num_images <= self._last.get(kind, -1) and kind not in ("started", "stopped", "failed"):
            return False  # a resumed training repeats, bit for bit, what it had logged after its checkpoint
        self._last[kind] = num_images
        with self._run.events_file.open("a") as file:
            file.write(json.dumps({"type": kind, "num_images": num_images, "time": time.time(), **values}) + "\n")
            if kind != "log":  # a snapshot's weights outlive a power cut, and so must its score
                file.flush()
                os.fsync(file.fileno())
        return True

    def check_attempt(self) -> None:
        """Ends a worker whose driver died and was replaced by another."""
        if (self._run.folder / "attempt").read_text() != self._attempt:
            raise SystemExit("another driver has taken over this run")


def read_events(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """The whole events from a byte offset on, and the offset after them."""
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return [json.loads(line) for line in data[:end].splitlines()], offset + end
