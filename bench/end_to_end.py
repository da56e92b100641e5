"""What the house costs: a whole training (Ray, loader, averaging, logs, MLflow, checkpoints) against the bare step.

A is `pipelines/train.py` in a project of its own, images/s between its first and its last log; B repeats the same
model's step on batches in memory, without averaging, logs or checkpoints. A and B alternate; a ratio is that of two
neighbours. A last row is the steps around one that saves a checkpoint, against it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from bench.report import Row, row
from genmodels.checkpoint import Checkpoints
from genmodels.config import load_params
from genmodels.data.loader import Loader
from genmodels.data.shards import open_shards
from genmodels.trainer import Trainer
from pipelines.run import read_events
from pipelines.worker import build_model

ROOT = Path(__file__).resolve().parents[1]
SAVING = "the steps around one that saves a checkpoint, against it"
CASES: dict[str, tuple[str, dict[str, Any], int, float]] = {  # model, settings, images, aim
    "end to end, a step of 11 ms": ("vae", {"latent_dim": 16, "width": 8}, 60_000, 0.90),
    "end to end, a step of 100 ms": ("dcgan", {"width": 32, "discriminator_width": 32}, 16_000, 0.97),
}


def end_to_end_rows(only: str, rounds: int) -> Iterator[Row]:
    """Both cases on one Ray worker, then the checkpoint."""
    torch.set_num_threads(1)
    for name, (model, settings, num_images, aim) in CASES.items():
        if only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_project(root, model, settings, num_images)
            pairs = [(whole(root, model, seed), bare(root, model)) for seed in range(rounds)]
        ours, other = (statistics.median(side) for side in zip(*pairs, strict=True))
        yield row(name, [a / b for a, b in pairs], aim, f"{ours:,.0f} images/s", f"{other:,.0f}")
    if only in SAVING:
        ratios, size = saving_step(rounds)
        yield row(SAVING, ratios, 1 / 1.1, f"{size:.0f} MB of weights")


def write_project(root: Path, model: str, settings: dict[str, Any], num_images: int) -> None:
    """params.yaml of one model on sprites, with a checkpoint and a log as often as the recipes have them."""
    train = {"num_images": num_images, "batch_size": 64, "snapshot_every": num_images}
    train |= {"log_every": num_images // 20, "checkpoint_every": num_images // 4, "precision": "fp32"}
    params = {
        "datasets": {"sprites": {"source": "sprites", "num_images": 3000}},
        "models": {model: {"dataset": "sprites", **settings, "train": train}},
        "evaluation": {"num_images": 64, "extractor_images": 256},
        "compute": {"cpus_per_worker": 1},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def whole(root: Path, model: str, seed: int) -> float:
    """Images/s of the command, from its events."""
    options = ["--num-workers", "1", "--set", f"models.{model}.train.seed={seed}"]
    environment = {**os.environ, "GENMODELS_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipelines.train", "--model", model, *options]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    newest = max((root / "data/runs").glob(f"{model}-*/events.jsonl"), key=os.path.getmtime)
    logs = [event for event in read_events(newest)[0] if event["type"] == "log"]
    return (logs[-1]["num_images"] - logs[0]["num_images"]) / (logs[-1]["time"] - logs[0]["time"])


def bare(root: Path, model: str) -> float:
    """Images/s of the same step on batches in memory, in a process of its own."""
    command = [sys.executable, "-m", "bench.end_to_end", str(root), model]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return json.loads(output)


def bare_steps(root: Path, model: str) -> float:
    """What `bare` runs."""
    torch.set_num_threads(1)
    config = load_params(root / "params.yaml").run(model)
    shards = root / "data/shards/sprites"
    trainer = Trainer(build_model(config, open_shards(shards).spec), config.train, lambda *_: None)
    stage = trainer.stages[0]
    trainer._update_ema = lambda batch_size: None
    with Loader(shards, trainer.model.batch_keys, stage.image_size, stage.batch_size, seed=0) as loader:
        batches = [trainer._to_device(next(loader)) for _ in range(20)]
    for batch in batches[:5]:
        trainer.train_step(batch)
    num_steps = config.train.num_images // stage.batch_size // 2
    start = time.perf_counter()
    for step in range(num_steps):
        trainer.train_step(batches[step % len(batches)])
        trainer._interval.values.clear()
    return num_steps * stage.batch_size / (time.perf_counter() - start)


def saving_step(rounds: int) -> tuple[list[float], float]:
    """The median of steps without a checkpoint over a step with one, and MB of weights."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_project(root, "dcgan", {"width": 260, "discriminator_width": 260}, 64_000)
        from genmodels.data.fields import DataSpec

        spec = DataSpec("noise", 3, 32, (32,), num_train=64, num_test=0)
        config = load_params(root / "params.yaml").run("dcgan")
        trainer = Trainer(build_model(config, spec), config.train, lambda *_: None)
        checkpoints = Checkpoints(root / "checkpoints", keep=2)
        batch, ratios = {"image": torch.rand(16, 3, 32, 32) * 2 - 1}, []
        for number in range(rounds + 1):
            plain = [_timed(lambda: trainer.train_step(batch)) for _ in range(3)]

            def step_and_save(number: int = number) -> None:
                trainer.train_step(batch)
                checkpoints.save(number, trainer.state())

            ratios.append(statistics.median(plain) / _timed(step_and_save))
            checkpoints.wait()
        size = sum(p.numel() * 4 for p in trainer.model.parameters()) / 1e6
    return ratios[1:], size


def _timed(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    print(bare_steps(Path(sys.argv[1]), sys.argv[2]))
