"""What every registered model promises of a training on two ranks: the one that a single rank would have done."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import Prepared
from trainings import BATCH, differing, every_model, make_trainer, stage_points, through_disk, timeless

import genmodels.trainer
from genmodels.model import Noise, model_class, model_names
from genmodels.trainer import Hooks


class RecordingNoise(Noise):
    """Keeps every draw that its rank was given."""

    drawn: list[torch.Tensor] = []

    def _slice(self, draws):
        kept = super()._slice(draws)
        self.drawn.append(kept.clone())
        return kept


def run_rank(rank: int, world_size: int, folder: str, data: Prepared) -> None:
    """One of two ranks: trains every model, resumes it from its middle and from a single rank's state."""
    torch.set_num_threads(1)
    if world_size > 1:
        store = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    genmodels.trainer.Noise = RecordingNoise
    for name in model_names():
        result: dict[str, Any] = {}
        states: dict[int, dict] = {}
        rows: list[dict] = []
        seen: list = []
        RecordingNoise.drawn = []
        hooks = Hooks(log=rows.append, save=lambda n, state, states=states: states.update({n: through_disk(state)}))
        trainer = make_trainer(name, data, hooks, seen, checkpoint_every=2 * BATCH)
        middle = stage_points(trainer)[1][-1] // (2 * BATCH) * (2 * BATCH)
        trainer.run()
        result |= {"final": trainer.state(), "rows": timeless(rows), "seen": seen, "noise": list(RecordingNoise.drawn)}
        saved = Path(folder) / f"{name}-{world_size}.pt"
        if rank == 0:
            torch.save(states[middle], saved)
        if world_size > 1:
            dist.barrier()
            result["resumed"] = resume(name, data, saved)[0]
            _, result["elastic"] = resume(name, data, Path(folder) / f"{name}-1.pt")
        torch.save(result, Path(folder) / f"{name}-{rank}of{world_size}.pt")
    if world_size > 1:
        dist.destroy_process_group()


def resume(name: str, data: Prepared, saved: Path) -> tuple[dict, list]:
    seen: list = []
    trainer = make_trainer(name, data, seen=seen, checkpoint_every=2 * BATCH)
    trainer.load_state(torch.load(saved, weights_only=True))
    trainer.run()
    return trainer.state(), seen


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, sprites_data) -> Callable[[str], tuple[dict, list[dict]]]:
    """By model name, what one rank saw and reached, and what each of two ranks did."""
    folder = tmp_path_factory.mktemp("ranks")
    noise = genmodels.trainer.Noise
    try:
        run_rank(0, 1, str(folder), sprites_data)
    finally:
        genmodels.trainer.Noise = noise
    mp.spawn(run_rank, args=(2, str(folder), sprites_data), nprocs=2)

    def read(name):
        one, *two = (torch.load(folder / f"{name}-{rank}.pt") for rank in ("0of1", "0of2", "1of2"))
        return one, two

    return read


@every_model
def test_two_ranks_end_with_identical_weights(name, ranks):
    _, (first, second) = ranks(name)
    states = [{key: rank["final"][key] for key in ("model", "ema", "optimizers")} for rank in (first, second)]
    own = tuple(f"/model/{prefix}" for prefix in model_class(name).rank_buffers)
    assert [path for path in differing(*states) if not own or not path.startswith(own)] == []
    assert first["rows"] == second["rows"] != []


@every_model
def test_two_ranks_resume_bit_exactly(name, ranks):
    _, two = ranks(name)
    for rank in two:
        assert differing(rank["resumed"], rank["final"]) == []


@every_model
def test_two_ranks_see_the_samples_and_the_noise_of_one(name, ranks):
    one, two = ranks(name)
    assert_same_samples(one["seen"], [rank["seen"] for rank in two])
    parts = zip(*(rank["noise"] for rank in two), strict=True)
    for whole, halves in zip(one["noise"], parts, strict=True):
        assert torch.equal(whole, torch.cat(halves))


@every_model
def test_two_ranks_go_on_with_the_sample_order_of_one(name, ranks):
    one, two = ranks(name)
    elastic = [rank["elastic"] for rank in two]
    assert 0 < len(elastic[0]) < len(one["seen"])
    assert_same_samples(one["seen"][-len(elastic[0]) :], elastic)


def assert_same_samples(whole: list, halves: list[list]) -> None:
    for (position, batch), *parts in zip(whole, *halves, strict=True):
        assert all(part[0] == position for part in parts)
        for key, values in batch.items():
            assert torch.equal(values, torch.cat([part[1][key] for part in parts]))
