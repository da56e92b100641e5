"""Does a sweep pay: TPE with ASHA against random search at equal images, over seeds; and what a sweep costs.

python bench/sweeps.py PROJECT --model dcgan --max-images 120000 --seeds 3
python bench/sweeps.py PROJECT --model dcgan --overhead

PROJECT holds a params.yaml with data set, model and space. What is finished is not repeated. The overhead is that of
whole trials of a random search over the same trainings in plain loops, as many processes as cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

from pipelines import worker
from pipelines.run import Run, owned
from pipelines.sweep import Sweep, Trial, ranked

METHODS = {"tpe+asha": ["tpe", "asha"], "random": ["random", "none"]}


def sweep(project: Path, model: str, method: str, seed: int, *limits: str) -> Sweep:
    """Runs a sweep of the project by its command."""
    searcher, scheduler = METHODS[method]
    command = [sys.executable, "-m", "pipelines.tune", "--model", model, "--seed", str(seed)]
    environment = {**os.environ, "GENMODELS_ROOT": str(project)}
    chosen = ["--searcher", searcher, "--scheduler", scheduler, *limits]
    done = subprocess.run([*command, *chosen], env=environment, capture_output=True, text=True, check=True)
    name = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("sweep "))
    return Sweep(project / "data/runs/sweeps" / name)


def compare(project: Path, model: str, seeds: int, max_images: int) -> None:
    """Prints the best whole trial of either method by seed."""
    for seed in range(seeds):
        row = {}
        for method in METHODS:
            found = sweep(project, model, method, seed, "--num-trials", "1000", "--max-images", str(max_images))
            whole = [trial for trial in found.trials() if trial.status == "finished"]
            (_, best), *_ = ranked(whole, found.metric)
            images = sum(trial.num_images for trial in found.trials())
            row[method] = f"{best:.4g} ({len(found.trials())} trials, {len(whole)} whole, {images:,} images)"
        print(json.dumps({"seed": seed, **row}), flush=True)


def overhead(project: Path, model: str, num_trials: int) -> None:
    """Prints images a second of a sweep and of plain loops over the same trainings."""
    found = sweep(project, model, "random", 100, "--num-trials", str(num_trials))
    names = [trial.name for trial in found.trials() if trial.status == "finished"]
    swept = rate([found.folder / name for name in names])
    plain = project / "data/plain"
    shutil.rmtree(plain, ignore_errors=True)
    for name in names:
        (plain / name).mkdir(parents=True)
        shutil.copy(found.folder / name / "run.json", plain / name)
    extractor, cores = found.info["extractor"], len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.starmap(loop, [(plain / name, extractor) for name in names], chunksize=1)
    bare = rate([plain / name for name in names])
    print(json.dumps({"sweep": round(swept), "plain": round(bare), "ratio": round(swept / bare, 3)}), flush=True)


def loop(folder: Path, extractor: str) -> None:
    """A training without Ray."""
    with owned(Run(folder)) as attempt:
        worker.train(str(folder), attempt, extractor, "cpu")


def rate(folders: list[Path]) -> float:
    """Images a second from the first training's begin to the last one's end."""
    events = [event for folder in folders for event in Run(folder).events()]
    times = [event["time"] for event in events]
    return sum(Trial(folder).num_images for folder in folders) / (max(times) - min(times))


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-images", type=int, default=120_000)
    parser.add_argument("--overhead", type=int, metavar="TRIALS", default=0)
    options = parser.parse_args()
    project = options.project.absolute()
    if options.overhead:
        overhead(project, options.model, options.overhead)
    else:
        compare(project, options.model, options.seeds, options.max_images)


if __name__ == "__main__":
    main()
