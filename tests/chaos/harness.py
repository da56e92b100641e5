"""Trainings as commands in processes of their own, the faults that strike them, and what became of both."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
from conftest import Project

from pipelines.run import Event, Run

INJECT = Path(__file__).parent / "inject"
RAY_SESSIONS = Path("/tmp/ray")
IN_WRITING = 160  # images that may be shown while a checkpoint becomes durable; it is repeated with its interval
OTHERS = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME")  # not for our trainings


@dataclass(frozen=True)
class Scale:
    """How long a training of ProGAN is, which grows from 4 to 16 pixels whatever its length."""

    num_images: int
    hold: int
    fade: int
    checkpoint_every: int

    @property
    def num_steps(self) -> int:
        return self.num_images // 16

    @property
    def settings(self) -> dict[str, int]:
        train = {"num_images": self.num_images, "checkpoint_every": self.checkpoint_every}
        train |= {"log_every": self.checkpoint_every // 2, "snapshot_every": self.num_images // 2}
        stages = {"hold_images": self.hold, "fade_images": self.fade}
        return {f"models.progan.{name}": value for name, value in stages.items()} | {
            f"models.progan.train.{name}": value for name, value in train.items()
        }


SHORT = Scale(num_images=1440, hold=160, fade=320, checkpoint_every=160)
LONG = Scale(num_images=7200, hold=800, fade=2400, checkpoint_every=640)


@dataclass(frozen=True)
class Strike:
    """A fault that was injected, as its process described it a moment before."""

    number: int
    kind: str
    step: int
    rank: int
    num_images: int
    pid: int
    time: float
    family: list[tuple[int, float]]  # number and start of the driver and its descendants

    def left_behind(self, timeout: float = 10) -> list[psutil.Process]:
        """Those of the family that are still alive after a while."""
        alive = []
        for number, start in self.family:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(number)
                alive += [process] if process.create_time() == start else []
        return [process for process in psutil.wait_procs(alive, timeout)[1] if process.status() != "zombie"]


@dataclass(frozen=True)
class Training:
    """One training in a storage folder of its own; its faults strike once, however often it is started."""

    project: Project
    name: str
    scale: Scale = SHORT
    num_workers: int | str = 0
    faults: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    model: str = "progan"
    storage: Path | None = None  # data/NAME of the project

    @cached_property
    def folder(self) -> Path:
        return self.storage or self.project.root / "data" / self.name

    @cached_property
    def fault_folder(self) -> Path:
        folder = self.project.root / "faults" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def command(self) -> list[str]:
        compute = {"storage_path": self.folder, "num_workers": self.num_workers}
        compute |= {"cpus_per_worker": 1} if self.num_workers else {}
        settings = self.scale.settings | {f"compute.{name}": value for name, value in compute.items()} | self.settings
        options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        return [sys.executable, "-m", "pipelines.train", "--model", self.model, *options]

    @property
    def variables(self) -> dict[str, str]:
        """The environment of the command."""
        inherited = {key: value for key, value in os.environ.items() if key not in OTHERS}
        ours = {"OMP_NUM_THREADS": "1", "GENMODELS_ROOT": str(self.project.root)}
        if self.faults:
            path = os.pathsep.join([str(INJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
            ours |= {"PYTHONPATH": path, "GENMODELS_FAULTS": ";".join(self.faults)}
            ours |= {"GENMODELS_FAULT_FOLDER": str(self.fault_folder)}
        return inherited | ours | self.environment

    @property
    def stderr(self) -> str:
        """What the command said last time."""
        return (self.fault_folder / "stderr").read_text()

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen]:
        """The command under way in a session of its own, of which nothing is left afterwards."""
        with (self.fault_folder / "given").open("a") as file:
            file.write(f"{time.time()}\n")
        with running(self.command, self.variables, self.fault_folder / "stderr") as process:
            yield process

    def finish(self, timeout: float = 800) -> None:
        """Runs the command to its end, which must be a good one."""
        with self.started() as process:
            assert process.wait(timeout) == 0, self.stderr

    def refused(self, timeout: float = 300) -> str:
        """The one line on stderr of the command, which must end with exit code 2."""
        with self.started() as process:
            assert process.wait(timeout) == 2, self.stderr
        (line,) = self.stderr.splitlines()
        assert line.startswith("error: ")
        return line

    @property
    def run(self) -> Run:
        """The only run in the folder."""
        (file,) = self.folder.glob(f"{self.model}-*/run.json")
        return Run(file.parent)

    def events(self, kind: str) -> list[Event]:
        return [event for event in self.run.events() if event["type"] == kind]

    @property
    def weights(self) -> str:
        """Sha256 of the final weights."""
        (finished,) = self.events("finished")
        return finished["weights"]

    @property
    def strikes(self) -> list[Strike]:
        """The faults that struck so far, in their order."""
        notes = [json.loads(file.read_text()) for file in self.fault_folder.glob("fault-*.json")]
        strikes = [Strike(**{name: note[name] for name in Strike.__dataclass_fields__}) for note in notes]
        return sorted(strikes, key=lambda strike: strike.time)

    def wait_for_strike(self, process: subprocess.Popen, number: int = 0, timeout: float = 800) -> Strike:
        """The moment at which a fault struck."""
        file = self.fault_folder / f"fault-{number}.json"
        wait(lambda: process.poll() is not None or (file.exists() and file.stat().st_size > 0), timeout, str(file))
        assert file.exists(), f"the training ended before its fault struck: {self.stderr}"
        return next(strike for strike in self.strikes if strike.number == number)

    @property
    def given(self) -> list[float]:
        """When the command was given."""
        return [float(line) for line in (self.fault_folder / "given").read_text().split()]

    @property
    def patience(self) -> float:
        """Seconds that a restart may take: 60, and on a machine that is slower than that as long as the first start."""
        return max(60.0, self.events("started")[0]["time"] - self.given[0])

    def resumption(self, strike: Strike) -> Event:
        """The first start after a fault."""
        return next(event for event in self.events("started") if event["time"] > strike.time)

    @property
    def shown(self) -> dict[int, list[int]]:
        """By step, the images shown in it, as numbers that tell them apart; needs the fault 'record'.

        A step that was repeated must have shown the same.
        """
        batches: dict[tuple[int, str], dict[int, dict]] = defaultdict(dict)  # by step and group of workers, then rank
        for row in self._samples:
            batches[row["step"], row["group"]][row["rank"]] = row
        shown: dict[int, list[int]] = {}
        for (step, group), ranks in sorted(batches.items()):
            if len(ranks) == ranks[min(ranks)]["world_size"]:  # the others were interrupted
                ids = [image for rank in sorted(ranks) for image in ranks[rank]["ids"]]
                assert shown.setdefault(step, ids) == ids, f"step {step} of {group} differs from an earlier one"
        return shown

    @property
    def _samples(self) -> list[dict]:
        files = self.fault_folder.glob("samples-*.jsonl")
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def repeated(self, start: Event) -> int:
        """Images that had been shown when training went on from a checkpoint before them; needs the fault 'record'."""
        last = max(row["step"] for row in self._samples if row["time"] < start["time"])
        return 16 * (last + 1) - start["num_images"]

    def assert_whole(self) -> None:
        """Every event is there exactly once, whatever was killed."""
        for kind in ("log", "snapshot", "finished"):
            shown = [event["num_images"] for event in self.events(kind)]
            assert shown == sorted(set(shown)) != []


@contextmanager
def running(
    command: list[str], variables: dict[str, str], stderr: Path, folder: Path | None = None
) -> Iterator[subprocess.Popen]:
    """A command in a session of its own, of which nothing is left afterwards."""
    with stderr.open("w") as file:  # a pipe would be held open by whoever outlives the command
        process = subprocess.Popen(
            command, cwd=folder, env=variables, start_new_session=True, stdout=subprocess.DEVNULL, stderr=file
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Looks at `condition` until it holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"no {what} in {timeout:g} s"
        time.sleep(0.05)


def detection(strike: Strike, sessions: Path = RAY_SESSIONS) -> float | None:
    """When Ray Train noticed the fault, seconds after it, as its controller logged it; None where it did not."""
    for file in sessions.glob("session_*/logs/train/ray-train-sys-controller-*.log"):
        text = file.read_text()
        if f"pid={strike.pid})" in text and file.stat().st_mtime > strike.time:
            lines = [json.loads(line) for line in text.splitlines()]
            noticed = [line["timestamp_ns"] / 1e9 for line in lines if "[FailurePolicy]" in line["message"]]
            return min((when - strike.time for when in noticed if when > strike.time), default=None)
    return None


def random_places(seed: int, num: int, num_ranks: int, num_steps: int) -> list[tuple[int, int]]:
    """`num` pairs (rank, step) in the order of their steps, which differ."""
    generator = random.Random(seed)
    return [(generator.randrange(num_ranks), step) for step in sorted(generator.sample(range(1, num_steps), num))]


def client(project: Project) -> Any:
    """MLflow's client of a project's own store."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{project.root}/mlflow.db")
