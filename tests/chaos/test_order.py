"""Rows 11 and 12: the samples, whatever the shards, the ranks and the threads, and when the ranks change."""

import numpy as np
import pytest
from PIL import Image

from chaos.harness import SHORT, Training, random_places
from genmodels.config import DatasetConfig
from genmodels.data.loader import Loader
from genmodels.data.prepare import prepare

NUM = 12  # images, of which each shows its number


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same images in 1, 2, 3, 4, 6 and 12 shards."""
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "source").mkdir()
    for number in range(NUM):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / "source" / f"{number}.png")
    made = {}
    for num_shards in (1, 2, 3, 4, 6, 12):
        config = DatasetConfig(
            source=str(folder / "source"), image_size=4, shard_size=NUM // num_shards, holdout=0, pyramid=False
        )
        made[num_shards] = folder / f"out{num_shards}"
        prepare("numbers", config, made[num_shards], folder, 1)
    return made


def shown(folder, num_ranks: int, num_threads: int, num_batches: int) -> list[int]:
    """The numbers of the images that all ranks were shown together, in order."""
    batch_size = 2 * num_ranks
    batches = []
    for rank in range(num_ranks):
        with Loader(
            folder, ["image"], 4, batch_size, 5, rank=rank, world_size=num_ranks, num_threads=num_threads
        ) as loader:
            batches.append([next(loader)["image"][:, 0, 0, 0].tolist() for _ in range(num_batches)])
    return [number for parts in zip(*batches, strict=True) for part in parts for number in part]


@pytest.mark.timeout(300)
def test_no_number_of_shards_ranks_or_threads_hangs_or_changes_the_samples(folders, table):
    """Every number of ranks takes whole epochs in as many steps as every other one with its batch."""
    whole = True
    for folder in folders.values():
        for num_ranks in range(1, 9):
            orders = {tuple(shown(folder, num_ranks, num_threads, num_batches=NUM)) for num_threads in range(1, 5)}
            (order,) = orders
            epochs = np.array(order).reshape(-1, NUM)
            whole &= bool((np.sort(epochs, 1) == np.arange(NUM)).all())
    table(11, "1-12 shards x 1-8 ranks x 1-4 threads", "-", equal=whole)
    assert whole


@pytest.mark.chaos
def test_the_samples_are_the_same_when_the_number_of_ranks_changes_in_an_epoch(chaos_project, seed, table, reference):
    """One rank, killed; then two of Ray, killed; then one again."""
    (_, first), (_, second) = random_places(seed, 2, 1, SHORT.num_steps)
    faults = ("record", *(f"kill step={step} target=driver" for step in (first, second)))
    training = Training(chaos_project, "ranks", SHORT, 0, faults)
    for num_workers in (0, 2, 0):
        attempt = Training(chaos_project, "ranks", SHORT, num_workers, faults)
        with attempt.started() as process:
            process.wait(600)
            assert process.returncode in (0, -9), attempt.stderr
        strikes = attempt.strikes
        if process.returncode:
            assert not strikes[-1].left_behind()
    starts = [event["workers"] for event in training.events("started")]
    same = training.shown == reference(SHORT, 0).shown
    table(12, "ranks 1, 2, 1 in an epoch", f"steps {first}, {second}", equal=same)
    assert starts == [1, 2, 1] and len(strikes) == 2
    assert same
