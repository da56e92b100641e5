"""Ranks on this machine against docs/scaling.md: the step's time without and with averaging, and the averaging alone.

    python bench/scaling.py

Every rank has one thread and the same batch of its own, so that a perfect machine takes as long with four as with one.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from genmodels import distributed
from genmodels.config import TrainConfig
from genmodels.data.fields import DataSpec
from genmodels.model import model_class
from genmodels.trainer import Trainer

PROGAN = {"latent_dim": 128, "fmap_base": 2048, "fmap_max": 128}
CASES: list[tuple[str, dict[str, Any], int, int]] = [  # model, settings, side, images a rank
    ("dcgan", {"width": 32, "discriminator_width": 32}, 32, 32),
    ("vae", {"latent_dim": 16, "width": 16}, 32, 64),
    ("progan", {**PROGAN, "start_size": 4}, 4, 16),
    ("progan", {**PROGAN, "start_size": 16}, 16, 16),
    ("progan", {**PROGAN, "start_size": 32}, 32, 16),
]
NUM_STEPS = 12
RANKS = (1, 2, 4)


def main() -> None:
    """Prints a line a case and number of ranks; the speed-up is in images/s over one rank's."""
    print(
        "| model | ranks | speed-up | parameters, MB | step, ms | all-reduce of a step, ms | share |\n"
        "|---|---|---|---|---|---|---|"
    )
    for case in CASES:
        alone = 0.0
        for num_ranks in RANKS:
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(_rank, (num_ranks, case, folder), nprocs=num_ranks)
                step, average, size = json.loads(Path(folder, "0.json").read_text())
            alone = alone or step
            print(
                f"| {case[0]} {case[2]} px | {num_ranks} | {num_ranks * alone / step:.2f} | {size:.1f} | "
                f"{1e3 * step:.0f} | {1e3 * average:.1f} | {average / step:.0%} |",
                flush=True,
            )


def _rank(rank: int, num_ranks: int, case: tuple[str, dict[str, Any], int, int], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    name, settings, side, share = case
    cls = model_class(name)
    model = cls(cls.Config(**settings), DataSpec("noise", 3, side, (side,), num_train=64, num_test=0))
    config = TrainConfig(num_images=10**9, batch_size=share * num_ranks, precision="fp32", log_every=10**9)
    trainer = Trainer(model, config, lambda *_: None)  # type: ignore[arg-type, return-value]
    batch = {"image": torch.rand(share, 3, side, side) * 2 - 1}
    gradients = [[torch.zeros_like(p) for p in parameters] for parameters in trainer.parameters.values()]

    def average() -> None:
        for each in gradients:
            distributed.average(each)

    times = [(_timed(lambda: trainer.train_step(batch)), _timed(average)) for _ in range(NUM_STEPS)][2:]
    step, averaging = (statistics.median(each) for each in zip(*times, strict=True))
    size = sum(gradient.nbytes for each in gradients for gradient in each) / 1e6
    Path(folder, f"{rank}.json").write_text(json.dumps([step, averaging, size]))
    dist.destroy_process_group()


def _timed(action: Any) -> float:
    dist.barrier()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
