"""Loader against stock webdataset, images/s of one process on the same shards.

    python bench/loader.py

A and B alternate; a ratio is that of two neighbouring rounds. Writes bench/results.json and prints a table.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import webdataset as wds

from genmodels.config import DatasetConfig
from genmodels.data.loader import Loader
from genmodels.data.prepare import prepare
from genmodels.data.shards import open_shards

BATCH = 64
AIM = {"raw 64 px": 6.0}  # times stock webdataset
RESULTS = Path(__file__).parent / "results.json"


def main(
    source: Annotated[str, typer.Option(help="images: the word sprites, or a folder")] = "sprites",
    num_images: Annotated[int, typer.Option(help="of the data set")] = 8000,
    rounds: Annotated[int, typer.Option(help="pairs of measurements")] = 5,
    seconds: Annotated[float, typer.Option(help="of one measurement")] = 1.0,
) -> None:
    """Measures every encoding at 32, 64 and 128 px."""
    torch.set_num_threads(1)
    rows = []
    print("| shards | ours, images/s | stock webdataset | ratio: median (min, max) | MB a 1,000 images |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for size, encoding in itertools.product((32, 64, 128), ("raw", "png", "jpg", "webp")):
            folder = Path(scratch) / f"{encoding}-{size}"
            config = DatasetConfig(
                source=source, image_size=size, encoding=encoding, num_images=num_images, pyramid=False
            )
            prepare("bench", config, folder, Path.cwd())
            rows.append(compare(f"{encoding} {size} px", folder, size, rounds, seconds))
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    if below := [row["name"] for row in rows if row["ratio"] < row["aim"]]:
        print(f"under their aim: {', '.join(below)}", file=sys.stderr)
        raise SystemExit(1)


def compare(name: str, folder: Path, size: int, rounds: int, seconds: float) -> dict[str, object]:
    """One row: images/s of both, and the ratios of neighbouring rounds."""
    shards = [shard for shard in open_shards(folder).shards if shard.split == "train"]
    num_bytes = sum(shard.bytes for shard in shards) / sum(shard.num_samples for shard in shards) / 1e6 * 1000
    with Loader(folder, ["image"], size, BATCH, seed=0) as loader:
        stock = stock_batches([str(folder / shard.name) for shard in shards])
        pairs = [(rate(lambda: next(loader), seconds), rate(lambda: next(stock), seconds)) for _ in range(rounds)]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"| {name} | {ours:,.0f} | {theirs:,.0f} |"
        f" {statistics.median(ratios):.1f} ({ratios[0]:.1f}, {ratios[-1]:.1f}) | {num_bytes:.1f} |",
        flush=True,
    )
    return {
        "name": f"loader {name} against stock webdataset",
        "ratio": round(statistics.median(ratios), 2),
        "min": round(ratios[0], 2),
        "max": round(ratios[-1], 2),
        "aim": AIM.get(name, 0.0),
        "images_per_second": round(ours),
    }


def stock_batches(tars: list[str]) -> Iterator[torch.Tensor]:
    """Shuffled batches uint8 [B, C, H, W] as webdataset's own documentation makes them."""

    def to_tensor(sample: dict[str, object]) -> torch.Tensor:
        pixels = next(sample[key] for key in ("npy", "png", "jpg", "webp") if key in sample)
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)

    dataset = wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False).repeat().shuffle(1000)
    images = iter(dataset.decode("rgb8").map(to_tensor))
    while True:
        yield torch.stack([next(images) for _ in range(BATCH)])


def rate(step: Callable[[], object], seconds: float) -> float:
    """Images/s of a step that makes a batch, after a few to warm up."""
    for _ in range(3):
        step()
    start, num = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        step()
        num += BATCH
    return num / elapsed


if __name__ == "__main__":
    typer.run(main)
