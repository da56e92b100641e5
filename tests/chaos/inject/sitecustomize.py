"""Faults for a training's processes, with this folder on PYTHONPATH: Python imports `sitecustomize` as it starts.

    GENMODELS_FAULTS='kill rank=1 step=37; nan step=90 phase=critic' GENMODELS_FAULT_FOLDER=/tmp/faults

Each fault strikes once, before the step that it names, and leaves its moment in FOLDER/fault-NUMBER.json, with
all processes of the driver. Where no rank is named, nor a node by its GENMODELS_FAULT_NODE, whoever comes first is hit.
`record` writes down the images that every trainer is shown.
"""

import json
import os
import signal
import sys
import time
import zlib
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "int": signal.SIGINT}


@dataclass(frozen=True)
class Fault:
    number: int
    kind: str  # of SIGNALS, or nan, fill, record; note: for a fault that comes from elsewhere
    step: int | None = None
    rank: int | None = None
    node: str | None = None
    phase: str | None = None  # of a nan
    target: str = "self"  # of a signal; or driver, or raylet: the node that this worker is on
    folder: str = ""  # whose disk is filled
    leave: int = 0  # bytes that stay free there

    @classmethod
    def parse(cls, number: int, text: str) -> "Fault":
        kind, *pairs = text.split()
        values = dict(pair.split("=") for pair in pairs)
        return cls(number, kind, **{key: int(value) if value.isdigit() else value for key, value in values.items()})

    def meets(self, trainer) -> bool:
        node = os.environ.get("GENMODELS_FAULT_NODE")
        return trainer.step == self.step and self.rank in (None, trainer.rank) and self.node in (None, node)

    def strike(self, trainer) -> None:
        try:
            with (FOLDER / f"fault-{self.number}.json").open("x") as file:  # of all processes one gets it
                note = {"number": self.number, "kind": self.kind, "num_images": trainer.num_images}
                json.dump({**note, **describe(trainer), "family": family()}, file)
        except FileExistsError:
            return
        if self.kind in SIGNALS:
            os.kill(victim(self.target), SIGNALS[self.kind])
            while self.kind in ("term", "int") and trainer._wishes.empty():
                time.sleep(0.01)  # till the worker is told: a short training would be over before
        elif self.kind == "nan":
            spoil(trainer.model, self.phase)
        elif self.kind == "fill":
            fill(self.folder, self.leave)


def victim(target: str) -> int:
    """The number of a process."""
    import psutil

    if target == "raylet":
        return next(process.pid for process in psutil.Process().parents() if process.name() == target)
    return {"self": os.getpid(), "driver": DRIVER}[target]


def spoil(model, phase: str | None) -> None:
    """Makes the first loss of the next `phase` NaN."""
    original = model.training_step

    def training_step(batch, name, *rest):
        losses, stats = original(batch, name, *rest)
        if phase in (None, name):
            del model.training_step  # the class's own again
            term = next(iter(losses))
            losses = {**losses, term: losses[term] * float("nan")}
        return losses, stats

    model.training_step = training_step


def fill(folder: str, leave: int) -> None:
    """Takes all room of a disk but some bytes."""
    disk = os.statvfs(folder)
    with open(f"{folder}/ballast", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_bsize - leave)


def describe(trainer) -> dict:
    return {"pid": os.getpid(), "rank": trainer.rank, "step": trainer.step, "time": time.time()}


def family() -> list[tuple[int, float]]:
    """The driver and its descendants: number and start, which no later process has."""
    import psutil

    driver = psutil.Process(DRIVER)
    return [(process.pid, process.create_time()) for process in (driver, *driver.children(recursive=True))]


def record(trainer, batch) -> None:
    """One line: which images this rank is shown, in their order."""
    images = batch["image"].cpu().contiguous().numpy()
    group = {"group": os.environ.get("MASTER_PORT", str(os.getpid())), "world_size": trainer.world_size}
    row = {**describe(trainer), **group, "ids": [zlib.crc32(image.tobytes()) for image in images]}
    with (FOLDER / f"samples-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def patch(trainer_class) -> None:
    def train_step(self, batch):
        for fault in FAULTS:
            if fault.kind == "record":
                record(self, batch)
            elif fault.meets(self):
                fault.strike(self)
        original(self, batch)

    original, trainer_class.train_step = trainer_class.train_step, train_step


class OnImport(MetaPathFinder):
    """Patches the trainer's class as soon as its module is there."""

    def find_spec(self, name, path, target=None):
        if name != "genmodels.trainer":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            patch(module.Trainer)

        spec.loader.exec_module = exec_module
        return spec


if "GENMODELS_FAULTS" in os.environ:
    FOLDER = Path(os.environ["GENMODELS_FAULT_FOLDER"])
    FAULTS = [Fault.parse(i, text) for i, text in enumerate(os.environ["GENMODELS_FAULTS"].split(";")) if text.strip()]
    DRIVER = int(os.environ.setdefault("GENMODELS_FAULT_DRIVER", str(os.getpid())))  # the first to come here
    sys.meta_path.insert(0, OnImport())
