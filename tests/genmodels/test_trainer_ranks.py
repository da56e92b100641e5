"""The training loop on two ranks of a small model: the training of one rank, stopped together."""

import threading
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from toy import Toy

from genmodels import distributed
from genmodels.config import TrainConfig
from genmodels.trainer import STOP, Hooks, Trainer


def train_data(phase, progress, batch, noise):
    """A gradient that depends on this rank's data and noise."""
    draws = noise.normal(len(batch["image"]))
    return (batch["image"].mean((1, 2, 3)) + 0.1 * draws).mean()


def numbered(rank: int, world_size: int):
    """Batches of images that hold their own numbers."""

    def open_loader(stage, num_images):
        share = stage.batch_size // world_size

        def batches():
            first = num_images
            while True:
                mine = torch.arange(first + rank * share, first + (rank + 1) * share, dtype=torch.float32)
                yield {"image": torch.sin(mine).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)}
                first += stage.batch_size

        return nullcontext(batches())

    return open_loader


def run_rank(rank: int, folder: str, world_size: int) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    model, rows = Toy(gradient=train_data), []
    if rank:
        nn.init.zeros_(model.a.weight)  # rank 0's weights must win
    config = TrainConfig(num_images=64, batch_size=8, log_every=16)
    trainer = Trainer(model, config, numbered(rank, world_size), Hooks(log=rows.append))
    trainer.run()
    rows = [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]
    torch.save((trainer.state(), rows), f"{folder}/{rank}of{world_size}.pt")
    if world_size > 1:
        with torch.no_grad():
            model.a.weight.add_(rank)
        with numbered(rank, world_size)(trainer.stages[0], 64) as batches:
            trainer.train_step(next(batches))
        try:
            trainer._after_step()
        except AssertionError as error:
            torch.save(str(error), f"{folder}/caught{rank}.pt")
        dist.destroy_process_group()


def test_two_ranks_train_as_one_with_the_same_global_batch(tmp_path):
    run_rank(0, str(tmp_path), 1)
    mp.spawn(run_rank, args=(str(tmp_path), 2), nprocs=2)
    (one, one_rows), *two = (torch.load(tmp_path / f"{name}.pt") for name in ("0of1", "0of2", "1of2"))
    for state, rows in two:
        for key, value in one["model"].items():
            torch.testing.assert_close(state["model"][key], value, rtol=1e-5, atol=1e-6)
        for row, one_row in zip(rows, one_rows, strict=True):
            assert row == {**one_row, **{k: pytest.approx(v, abs=1e-5) for k, v in one_row.items() if "/" in k}}
    for rank in range(2):  # and weights that differ are noticed at the next checkpoint
        assert "the ranks' weights differ" in torch.load(tmp_path / f"caught{rank}.pt")


def run_asked_rank(rank: int, folder: str) -> None:
    """Rank 1 is asked to stop, by a thread, while both train."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, saves = Toy(gradient=train_data), []
    config = TrainConfig(num_images=8_000_000, batch_size=8, log_every=8_000_000)
    hooks = Hooks(save=lambda num_images, state: saves.append(num_images))
    trainer = Trainer(model, config, numbered(rank, 2), hooks)
    if rank == 1:
        threading.Timer(0.2, trainer.ask, (STOP,)).start()
    trainer.run()
    shared = distributed.from_first({"from": rank})
    torch.save((trainer.num_images, saves[-1:], shared, trainer.stopped), f"{folder}/stopped{rank}.pt")
    dist.destroy_process_group()


def test_one_rank_that_is_asked_to_stop_stops_all_at_the_same_step(tmp_path):
    mp.spawn(run_asked_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"stopped{rank}.pt") for rank in range(2))
    assert first == second == (first[0], [first[0]], {"from": 0}, True)
    assert 0 < first[0] < 8_000_000
