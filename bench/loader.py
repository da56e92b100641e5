"""Loader against stock webdataset, images/s of one process on the same shards."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image

from bench.report import Row, row
from genmodels.config import DatasetConfig
from genmodels.data.loader import Loader
from genmodels.data.prepare import prepare
from genmodels.data.shards import open_shards

BATCH, NUM_IMAGES = 64, 8000
AIM = {"raw 64 px": 6.0}  # times stock webdataset
STAGE_AIM = {64: 50.0, 128: 10.0}  # times decoding and shrinking originals of 256 px


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
            yield compare(name, AIM.get(f"{encoding} {size} px"), Path(folder), Path(folder), size, rounds)


def stage_rows(only: str, rounds: int) -> Iterator[Row]:
    """A growing model's stages, each read at its own size, against decoding the originals and shrinking them."""
    torch.set_num_threads(1)
    names = {size: f"loader of a {size} px stage against decoding and shrinking 256 px" for size in STAGE_AIM}
    if not any(only in name for name in names.values()):
        return
    with tempfile.TemporaryDirectory() as folder:
        stages, originals = Path(folder, "stages"), Path(folder, "originals")
        for out, encoding in ((stages, "raw"), (originals, "png")):
            config = DatasetConfig(
                source="sprites", image_size=256, encoding=encoding, num_images=500, pyramid=out == stages
            )
            prepare("bench", config, out, Path.cwd())
        for size, name in names.items():
            if only in name:
                yield compare(name, STAGE_AIM[size], stages, originals, size, rounds)


def compare(name: str, aim: float | None, folder: Path, stock_folder: Path, size: int, rounds: int) -> Row:
    """One row: images/s of both, and the ratios of neighbouring rounds."""
    shards = [shard for shard in open_shards(stock_folder).shards if shard.split == "train"]
    with Loader(folder, ["image"], size, BATCH, seed=0) as loader:
        stock = stock_batches([str(stock_folder / shard.name) for shard in shards], size)
        pairs = [(rate(lambda: next(loader)), rate(lambda: next(stock))) for _ in range(rounds)]
    ours, theirs = (sorted(side)[len(pairs) // 2] for side in zip(*pairs, strict=True))
    return row(name, [a / b for a, b in pairs], aim, f"{ours:,.0f} images/s", f"{theirs:,.0f}")


def stock_batches(tars: list[str], size: int) -> Iterator[torch.Tensor]:
    """Shuffled batches uint8 [B, C, size, size] as webdataset's own documentation makes them."""

    def to_tensor(sample: dict[str, Any]) -> torch.Tensor:
        pixels = next(sample[key] for key in ("npy", "png", "jpg", "webp") if key in sample)
        if len(pixels) > size:
            pixels = Image.fromarray(pixels).resize((size, size), Image.Resampling.BOX)
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
