"""What every training worker runs, under Ray or not: a Trainer whose hooks write into the run's folder."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import socket
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import torch

from genmodels import distributed, export, pictures
from genmodels.checkpoint import Checkpoints
from genmodels.config import RunConfig
from genmodels.data.cache import ShardCache
from genmodels.data.fields import DataSpec
from genmodels.data.loader import Loader
from genmodels.metrics.judge import Judge
from genmodels.model import Batch, GenerativeModel, Progress, Stage, model_class
from genmodels.trainer import SAVE, STOP, Hooks, NonFiniteError, Trainer
from pipelines.run import EventLog, Run
from pipelines.watching import repeating

LISTEN_EVERY = 0.5  # seconds between looks at what the driver asks for
NUM_GRID = 64  # images of a sample grid, always of the same latents


def build_model(config: RunConfig, spec: DataSpec) -> GenerativeModel:
    """The model with its seeded initial weights, for the image size that the training asks for."""
    spec = dataclasses.replace(spec, image_size=config.train.image_size or spec.image_size)
    torch.manual_seed(config.train.seed)
    return model_class(config.model)(config.settings, spec)


def train(
    folder: str,
    attempt: str,
    extractor: str,
    device: torch.device | str,
    node: str = "",
    until: int | None = None,
) -> None:
    """Trains the run in `folder` from its latest checkpoint to the end; returns on every rank at the same step.

    `node` names the machine that this rank runs on; `until`: as in `Trainer.run`.
    """
    run = Run(Path(folder))
    config, shards, cache = run.config, Path(run.info["shards"]), ShardCache.from_json(run.info["cache"])
    spec = DataSpec.from_json(run.info["data"])
    rank, world_size = distributed.world()
    nodes = distributed.gather(node or socket.gethostname())
    torch.backends.cudnn.deterministic = True  # some of its convolutions add in any order, and a run must repeat
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32: in scores too, which other machines' are compared with
    model = build_model(config, spec)

    def open_loader(stage: Stage, num_images: int) -> Loader:
        return Loader(
            shards,
            model.batch_keys,
            stage.image_size,
            stage.batch_size,
            seed=config.train.seed,
            start=num_images,
            rank=rank,
            world_size=world_size,
            mirror=config.train.mirror,
            domain=spec.domain_of_image(config.train.domain),
            pin_memory=torch.device(device).type == "cuda",
            cache=cache,
            digest=spec.digest,
        )

    if rank > 0:
        trainer = Trainer(model, config.train, open_loader, Hooks(), device)
        _resume(trainer, None)
        with suppress(NonFiniteError):  # rank 0 tells
            trainer.run(until)
        return
    log, checkpoints = EventLog(run, attempt), open_checkpoints(run)
    judge = Judge(shards, spec, config, Path(extractor), device, cache)
    trainer = Trainer(model, config.train, open_loader, _hooks(run, log, judge, checkpoints), device)
    with warnings.catch_warnings(record=True) as damaged:
        _resume(trainer, checkpoints)
    notes = [str(warning.message) for warning in damaged]
    log.add("started", trainer.num_images, workers=world_size, nodes=nodes, device=str(trainer.device), notes=notes)
    try:
        with _listening(run, trainer):
            trainer.run(until)
        checkpoints.wait()
    except (NonFiniteError, OSError) as error:
        if isinstance(error, OSError) and (error.errno != errno.ENOSPC or world_size > 1):
            raise  # the other ranks do not know of it and would wait for this one
        log.add("failed", trainer.num_images, reason=str(error))  # no reason for Ray to restart it
        return
    if trainer.stopped:
        log.add("stopped", trainer.num_images)
    else:
        log.add("finished", trainer.num_images, weights=weights_digest(trainer))


def open_checkpoints(run: Run) -> Checkpoints:
    """The run's training states, in its folder or in the store that it names."""
    config, store = run.config, run.info.get("checkpoint_store")
    place = f"{store}/{run.place}" if store else run.folder / "checkpoints"
    metric = model_class(config.model).metric
    return Checkpoints(place, config.train.keep_checkpoints, config.train.keep_best_checkpoints, metric)


def _resume(trainer: Trainer, checkpoints: Checkpoints | None) -> None:
    """Puts every rank where the latest checkpoint stands; rank 0 alone reads it, so that all take the same."""
    state = distributed.from_first(checkpoints.load_latest() if checkpoints else None)
    if state:
        trainer.load_state(state)


def _listening(run: Run, trainer: Trainer) -> AbstractContextManager[None]:
    """Hands what the driver asks for to the trainer, within a second."""
    wishes, heard = {"save": SAVE, "stop": STOP}, ""

    def listen() -> None:
        nonlocal heard
        with suppress(OSError):  # a shared folder that is away for a moment
            before, heard = heard, run.asked()
            if heard != before and heard in wishes:
                trainer.ask(wishes[heard])

    return repeating(listen, LISTEN_EVERY, "listener")


def weights_digest(trainer: Trainer) -> str:
    """Sha256 over the live and the averaged weights: equal only for bit-equal trainings."""
    digest = hashlib.sha256()
    for model in (trainer.model, trainer.ema):
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _hooks(run: Run, log: EventLog, judge: Judge, checkpoints: Checkpoints) -> Hooks:
    ranked: dict[int, float] = {}  # scores by images shown; of the full size only
    put_off: list[Callable[[], None]] = []

    def save(num_images: int, state: dict) -> None:
        log.check_attempt()
        checkpoints.save(num_images, state, ranked.get(num_images))

    def snapshot(model: GenerativeModel, progress: Progress) -> None:
        conditions = export.turns(judge.conditions(model, progress.stage.image_size), NUM_GRID)
        sampler = export.Sampler(model, progress, {}, judge.device, conditions)
        picture = run.folder / "samples" / f"{progress.num_images:012d}.png"
        picture.parent.mkdir(exist_ok=True)
        pictures.grid(model.present(sampler.sample(NUM_GRID), conditions), min_side=32).save(picture)
        samples = judge.draw(sampler)
        if progress.num_images > 0:
            scores = judge.score(model, samples)
            keep(model, progress, conditions, scores[model.metric.name])
            tell(model, progress, picture, scores)
        else:  # the first step does not wait for the metrics' imports, seconds of it
            put_off.append(lambda: tell(model, progress, picture, judge.score(model, samples)))

    def keep(model: GenerativeModel, progress: Progress, conditions: Batch, score: float) -> None:
        info = {"run": run.name, "images shown": progress.num_images, f"score ({model.metric.name})": score}
        info |= {"domain": judge.domain or "all"} if judge.spec.domains else {}
        export.save(run.folder / "last", model, progress, info, conditions)
        if progress.stage.image_size == model.data.image_size:
            ranked[progress.num_images] = score
            if model.metric.better(score, _best_before(run, model, progress.num_images)):
                export.save(run.folder / "best", model, progress, info, conditions)

    def tell(model: GenerativeModel, progress: Progress, picture: Path, scores: dict[str, float]) -> None:
        log.add(
            "snapshot",
            progress.num_images,
            stage=progress.stage.name,
            scores=scores,
            score=scores[model.metric.name],
            protocol=judge.protocol(model, progress.stage.image_size).to_json(),
            picture=str(picture.relative_to(run.folder)),
            ranked=progress.num_images in ranked,
        )

    def log_row(row: dict) -> None:
        log.add("log", row["num_images"], values={key: value for key, value in row.items() if key != "num_images"})
        checkpoints.check()  # a disk that is full need not wait for the next checkpoint to be told

    def begun() -> None:
        while put_off:
            put_off.pop()()

    return Hooks(log=log_row, save=save, snapshot=snapshot, begun=begun)


def _best_before(run: Run, model: GenerativeModel, num_images: int) -> float | None:
    """The best ranked score of earlier snapshots."""
    best = None
    for event in run.events():
        if event["type"] == "snapshot" and event["ranked"] and event["num_images"] < num_images:
            best = event["score"] if model.metric.better(event["score"], best) else best
    return best
