"""From a command to its help, and to its first training step, against the seconds that it may take."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.end_to_end import ROOT, write_project
from bench.report import Row, alternate, row
from pipelines.run import read_events

SETTINGS = {"latent_dim": 16, "width": 8}


def start_up_rows(only: str, rounds: int) -> Iterator[Row]:
    """Seconds allowed over seconds taken: of the CPU for help, of the clock for trainings, whose shards are there."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_project(root, "vae", SETTINGS, 640)
        cases: dict[str, tuple[float, Callable[[], float]]] = {
            "start-up, --help": (0.5, help_seconds),
            "start-up, --num-workers 0": (4.0, lambda: first_step(root, 0)),
            "start-up, a local Ray": (15.0, lambda: first_step(root, 1)),
        }
        for name, (allowed, measure) in cases.items():
            if only in name:
                measure()  # shards are prepared, files of the disk are in memory
                taken = [measure() for _ in range(rounds)]
                ratios = [allowed / each for each in taken]
                yield row(name, ratios, 1.0, f"{sorted(taken)[rounds // 2]:.2f} s", f"{allowed} s")
        name = "start-up, a local Ray, against an empty Ray Train"
        if only in name:
            for measure in (lambda: first_step(root, 1), empty_trainer_seconds):
                measure()  # as above
            ratios, ours, empty = alternate(lambda: first_step(root, 1), empty_trainer_seconds, rounds)
            yield row(name, ratios, None, f"{ours:.1f} s", f"{empty:.1f} s")


def help_seconds() -> float:
    """CPU seconds of `--help`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "pipelines.train", "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_step(root: Path, num_workers: int) -> float:
    """Seconds from the command to the log of its first step, of a training that has not run before."""
    seed = time.time_ns() % 2**31
    options = ["--num-workers", str(num_workers), "--set", f"models.vae.train.seed={seed}"]
    options += ["--set", "models.vae.train.log_every=64"]
    environment = {**os.environ, "GENMODELS_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipelines.train", "--model", "vae", *options]
    start = time.time()
    subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    newest = max((root / "data/runs").glob("vae-*/events.jsonl"), key=os.path.getmtime)
    return next(event["time"] for event in read_events(newest)[0] if event["type"] == "log") - start


def empty_trainer_seconds() -> float:
    """Seconds from a command to the first line of a Ray Train worker that has nothing to do."""
    environment, command = {**os.environ, "OMP_NUM_THREADS": "1"}, [sys.executable, "-m", "bench.empty_ray"]
    start = time.time()
    out = subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return float(out.stdout.split()[-1]) - start
