"""Loader against stock webdataset, images/s of one process on the same shards."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset as wds

from bench.report import Row, row
from genmodels.config import DatasetConfig
from genmodels.data.loader import Loader
from genmodels.data.prepare import prepare
from genmodels.data.shards import open_shards

BATCH, NUM_IMAGES = 64, 8000
AIM = {"raw 64 px": 6.0}  # times stock webdataset


def loader_rows(only: str, rounds: int) -> Iterator[Row]:
    """Every encoding at 32, 64 and 128 px, of drawings."""
    torch.set_num_threads(1)
    for size, encoding in itertools.product((32, 64, 128), ("raw", "png", "jpg", "webp")):
        name = f"loader {encoding} {size} px against stock webdataset"
        if only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            config = DatasetConfig(
                source="sprites", image_size=size, encoding=encoding, num_images=NUM_IMAGES, pyramid=False
            )
            prepare("bench", config, Path(folder), Path.cwd())
            yield compare(name, AIM.get(f"{encoding} {size} px"), Path(folder), size, rounds)


def compare(name: str, aim: float | None, folder: Path, size: int, rounds: int) -> Row:
    """One row: images/s of both, and the ratios of neighbouring rounds."""
    shards = [shard for shard in open_shards(folder).shards if shard.split == "train"]
    with Loader(folder, ["image"], size, BATCH, seed=0) as loader:
        stock = stock_batches([str(folder / shard.name) for shard in shards])
        pairs = [(rate(lambda: next(loader)), rate(lambda: next(stock))) for _ in range(rounds)]
    ours, theirs = (sorted(side)[len(pairs) // 2] for side in zip(*pairs, strict=True))
    return row(name, [a / b for a, b in pairs], aim, f"{ours:,.0f} images/s", f"{theirs:,.0f}")


def stock_batches(tars: list[str]) -> Iterator[torch.Tensor]:
    """Shuffled batches uint8 [B, C, H, W] as webdataset's own documentation makes them."""

    def to_tensor(sample: dict[str, object]) -> torch.Tensor:
        pixels = next(sample[key] for key in ("npy", "png", "jpg", "webp") if key in sample)
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)

    dataset = wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False).repeat().shuffle(1000)
    images = iter(dataset.decode("rgb8").map(to_tensor))
    while True:
        yield torch.stack([next(images) for _ in range(BATCH)])


def rate(step: Callable[[], object], seconds: float = 1.0) -> float:
    """Images/s of a step that makes a batch, after a few to warm up."""
    for _ in range(3):
        step()
    start, num = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        step()
        num += BATCH
    return num / elapsed
