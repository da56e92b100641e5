"""Ranks on this machine against docs/scaling.md: the step's time without and with averaging, and the averaging alone.

    python -m bench.scaling [--device cuda]

Every rank has one thread and the same batch of its own, so that a perfect machine takes as long with four as with one.
On a GPU all ranks share the first one, over gloo: that shows that they can, not what several would give.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import typer

from bench.cases import Case, progan
from bench.gpu import wait
from genmodels import distributed

CASES = [  # the batch is a rank's own
    Case("dcgan", 32, 32, {"width": 32, "discriminator_width": 32}, plain={}),
    Case("vae", 32, 64, {"latent_dim": 16, "width": 16}, plain={}),
    *(progan(size, 16) for size in (4, 16, 32)),
]
NUM_STEPS = 12
RANKS = (1, 2, 4)


def main(device: Annotated[Literal["cpu", "cuda"], typer.Option(help="where the ranks train")] = "cpu") -> None:
    """Prints a line a case and number of ranks; speed-ups are in images/s over one rank's.

    The limit is that of as many trainings that know nothing of each other.
    """
    print(
        "| model | ranks | speed-up | limit | parameters, MB | step, ms | all-reduce of a step, ms | share |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for case in CASES:
        alone = 0.0
        for num_ranks in RANKS:
            apart, _, _ = _measured(case, num_ranks, device, together=False)
            step, average, size = _measured(case, num_ranks, device, together=True)
            alone = alone or step
            print(
                f"| {case.name} | {num_ranks} | {num_ranks * alone / step:.2f} | {num_ranks * alone / apart:.2f} | "
                f"{size:.1f} | {1e3 * step:.0f} | {1e3 * average:.1f} | {average / step:.0%} |",
                flush=True,
            )


def _measured(case: Case, num_ranks: int, device: str, together: bool) -> tuple[float, float, float]:
    """Seconds of a step, of its averaging, and MB of gradients, by the first process."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (num_ranks, case, folder, device, together), nprocs=num_ranks)
        step, average, size = json.loads(Path(folder, "0.json").read_text())
    return step, average, size


def _rank(rank: int, num_ranks: int, case: Case, folder: str, device: str, together: bool) -> None:
    torch.set_num_threads(1)
    if together:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    trainer = replace(case, batch_size=(num_ranks if together else 1) * case.batch_size).trainer(device=device)
    batch = {"image": torch.rand(case.batch_size, 3, case.image_size, case.image_size, device=device) * 2 - 1}
    gradients = [[torch.zeros_like(p) for p in parameters] for parameters in trainer.parameters.values()]

    def average() -> None:
        for each in gradients:
            distributed.average(each)

    times = [(_timed(lambda: trainer.train_step(batch), device), _timed(average, device)) for _ in range(NUM_STEPS)][2:]
    step, averaging = (statistics.median(each) for each in zip(*times, strict=True))
    size = sum(gradient.nbytes for each in gradients for gradient in each) / 1e6
    Path(folder, f"{rank}.json").write_text(json.dumps([step, averaging, size]))
    if together:
        dist.destroy_process_group()


def _timed(action: Any, device: str) -> float:
    if dist.is_initialized():
        dist.barrier()
    start = time.perf_counter()
    action()
    wait(torch.device(device))
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
