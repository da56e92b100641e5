"""What speed buys: a recipe against another way, as many minutes each, scored on images neither saw.

    python -m bench.quality FOLDER_OF_CLASSES --minutes 10 --seeds 3
    python -m bench.quality FOLDER_OF_CLASSES --model progan

The other way of dcgan and vae is the plain script, that of progan is full size throughout. Goes on where it stopped: a
training that has its scores in data/quality is not run again. The judge is a classifier of labels, trained here on a
third part of the images, so no recipe was tuned with it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor
from torch.nn import Module

from bench.plain import plain_script
from bench.report import Row, conclude, row, show
from genmodels.config import DatasetConfig, RunConfig, load_params
from genmodels.data.loader import Loader, read_split
from genmodels.data.prepare import prepare
from genmodels.data.shards import open_shards
from genmodels.metrics.evaluate import evaluate
from genmodels.metrics.features import Extractor, train_extractor
from genmodels.trainer import STOP, Hooks, Trainer, to_float
from pipelines.watching import repeating
from pipelines.worker import build_model

ROOT = Path(__file__).resolve().parents[1]
AIMS = {"dcgan": {"fid": 2.0, "swd": 1.25}, "vae": {"fid": 1.0, "swd": 1.0}, "progan": {"fid": 1.0, "swd": 1.0}}
SIZE, BATCH = 32, 64  # of all images; of the plain scripts
Model = Literal["dcgan", "vae", "progan"]
Side = Literal["ours", "other"]
Sample = Callable[[int], Tensor]  # number -> images in [-1, 1]
Train = Callable[[RunConfig, Path, float, int], Sample]  # our recipe, shards, minutes, seed


def main(
    images: Annotated[Path, typer.Argument(help="images of 32 pixels or more, a folder a class", exists=True)],
    model: Annotated[Model, typer.Option(help="whose recipe")] = "dcgan",
    minutes: Annotated[float, typer.Option(help="of each training, by the clock; of the CPU with one thread")] = 10.0,
    seeds: Annotated[int, typer.Option(min=1, help="trainings a side")] = 3,
    recipe: Annotated[str | None, typer.Option(help="a name under recipes.MODEL in params.yaml")] = None,
    threads: Annotated[int, typer.Option(min=1, help="that a training uses")] = 2,
    side: Annotated[Side | None, typer.Option(help="this one alone: two such commands train at once")] = None,
) -> None:
    """Trains both sides, seed by seed, and compares their scores."""
    torch.set_num_threads(threads)
    out = ROOT / "data/quality"
    shards = out / "shards"
    prepare("quality", DatasetConfig(source=str(images.resolve()), image_size=SIZE, holdout=0.3), shards, ROOT)
    ours = load_params(ROOT / "params.yaml").run(model, recipe)
    results = out / f"{open_shards(shards).spec.digest[:8]}-{ours.digest('')}-{minutes:g}min-{threads}threads"
    results.mkdir(parents=True, exist_ok=True)
    judged = judge(shards)
    sides: dict[Side, Train] = {"ours": train_ours, "other": OTHERS[model]}
    for seed in range(seeds):
        for name in [side] if side else sides:
            file = results / f"{name}-{seed}.json"
            if not file.exists():
                file.write_text(json.dumps(score(sides[name](ours, shards, minutes, seed), *judged)))
    if side:
        return
    conclude(show(compare(model, results, seeds, f"{minutes:g} minutes")))


def judge(shards: Path) -> tuple[Tensor, Extractor]:
    """Half of the held-out images to compare with, and a classifier trained on the other half."""
    batch, _ = read_split(shards, "test", SIZE, 10**6)
    images, half = to_float(batch["image"]), len(batch["image"]) // 2
    return images[:half], train_extractor(images[half:], batch["label"][half:], seed=20_011)


def train_ours(config: RunConfig, shards: Path, minutes: float, seed: int) -> Sample:
    """The recipe as `pipelines/train.py` would run it, without logs; its averaged generator."""
    never = {"num_images": 10**9, "log_every": 10**9, "checkpoint_every": 10**9, "snapshot_every": 10**9}
    train = config.train.model_copy(update={**never, "seed": seed})
    torch.manual_seed(seed)
    model = build_model(config.model_copy(update={"train": train}), open_shards(shards).spec)

    def open_loader(stage, num_images):  # type: ignore[no-untyped-def]
        return Loader(
            shards, model.batch_keys, stage.image_size, stage.batch_size, seed, num_images, mirror=train.mirror
        )

    trainer = Trainer(model, train, open_loader, Hooks())
    clock = _clock()
    start = clock()
    with repeating(lambda: trainer.ask(STOP) if clock() - start > 60 * minutes else None, 0.1, "clock"):
        trainer.run()
    print(f"{config.model}, seed {seed}: {trainer.num_images:,} images", flush=True)
    latents = torch.Generator().manual_seed(seed)
    return lambda num: trainer.ema.generate(model.latent(num, latents), {}, trainer.progress())


def train_whole(config: RunConfig, shards: Path, minutes: float, seed: int) -> Sample:
    """The recipe at full size from the first image."""
    settings = config.settings.model_copy(update={"start_size": SIZE})
    return train_ours(config.model_copy(update={"settings": settings}), shards, minutes, seed)


def train_plain_dcgan(config: RunConfig, shards: Path, minutes: float, seed: int) -> Sample:
    """The tutorial's script."""
    torch.manual_seed(seed)
    script: Any = plain_script("dcgan", channels=open_shards(shards).spec.channels, size=SIZE, latent_dim=100, width=32)
    script.apply(init)
    train_plain(script, shards, minutes, seed)
    generator = script.generator.eval()
    return lambda num: generator(2 * torch.rand(num, 100) - 1)


def train_plain_vae(config: RunConfig, shards: Path, minutes: float, seed: int) -> Sample:
    """A script of the recipe's own sizes."""
    torch.manual_seed(seed)
    sizes = config.settings.model_dump(include={"latent_dim", "width", "sigma"})
    script: Any = plain_script("vae", channels=open_shards(shards).spec.channels, size=SIZE, **sizes)
    train_plain(script, shards, minutes, seed)
    decoder = script.decoder.eval()
    return lambda num: torch.tanh(decoder(torch.randn(num, sizes["latent_dim"])))


OTHERS: dict[Model, Train] = {"dcgan": train_plain_dcgan, "vae": train_plain_vae, "progan": train_whole}


def train_plain(script: Any, shards: Path, minutes: float, seed: int) -> None:
    """Steps on images in memory, in an order drawn anew each epoch."""
    images = to_float(read_split(shards, "train", SIZE, 10**6)[0]["image"])
    clock = _clock()
    start, shown = clock(), 0
    while True:
        for batch in images[torch.randperm(len(images))].split(BATCH):
            if clock() - start > 60 * minutes:
                print(f"plain, seed {seed}: {shown:,} images", flush=True)
                return
            script.step({"image": batch})
            shown += len(batch)


def _clock() -> Callable[[], float]:
    """Seconds: of this process where it has one thread, as others share the machine."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def init(module: Module) -> None:
    """The tutorial's initial weights."""
    if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d | torch.nn.Linear):
        torch.nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, torch.nn.BatchNorm2d):
        torch.nn.init.normal_(module.weight, 1, 0.02)


@torch.no_grad()
def score(sample: Sample, real: Tensor, extractor: Extractor) -> dict[str, float]:
    """All scores of as many samples as there are real images."""
    parts = [sample(min(256, len(real) - start)) for start in range(0, len(real), 256)]
    return evaluate(real, torch.cat(parts), extractor)


def compare(model: Model, results: Path, seeds: int, title: str) -> Iterator[Row]:
    """The other way's score over ours, by seed."""
    for name, aim in AIMS[model].items():
        ours, other = (
            [json.loads((results / f"{side}-{seed}.json").read_text())[name] for seed in range(seeds)]
            for side in ("ours", "other")
        )
        words = [f"{statistics.median(side):.1f}" for side in (ours, other)]
        yield row(f"quality {model} {name}, {title}", [b / a for a, b in zip(ours, other, strict=True)], aim, *words)


if __name__ == "__main__":
    typer.run(main)
