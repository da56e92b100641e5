"""Trains a model with Ray, tracks it in MLflow and registers the result.

    python pipelines/train.py --model progan
    python pipelines/train.py --model all                      # or a list: several side by side
    ray submit cluster.yaml pipelines/train.py --model progan

The same command goes on with a training that was interrupted; it may be killed at any point.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.project import Overrides, UserError, command, extractor_path, params, root, shard_cache, shards, storage

if TYPE_CHECKING:
    from genmodels.config import ComputeConfig, Params, RunConfig
    from genmodels.data.cache import ShardCache
    from genmodels.data.fields import DataSpec
    from genmodels.model import GenerativeModel, Stage
    from pipelines.run import Run


@command
def main(
    model: Annotated[
        str, typer.Option(help="a registered model, such as progan; several: a,b; all of params.yaml: all")
    ],
    recipe: Annotated[str | None, typer.Option(help="a name under recipes.MODEL in params.yaml")] = None,
    overrides: Overrides = None,
    num_workers: Annotated[int | None, typer.Option(min=0, help="Ray workers; 0: in this process")] = None,
    out: Annotated[Path | None, typer.Option(help="a folder to replace by export, curves and pictures")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything and show the plan")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="print the resolved configuration")] = False,
) -> None:
    """Trains MODEL as params.yaml says, from its last checkpoint if there is one."""
    if num_workers is not None:
        overrides = [*(overrides or []), f"compute.num_workers={num_workers}"]
    everything = params(overrides)
    configs = {name: everything.run(name, recipe) for name in chosen(everything, model)}
    if out:
        from pipelines.outcome import check_out

        for name in configs:
            check_out(out / name if len(configs) > 1 else out, everything.compute)
    if print_config:
        import yaml

        print("---\n".join(yaml.safe_dump(config.to_json(), sort_keys=False) for config in configs.values()), end="")
    elif dry_run:
        for config in configs.values():
            show(preflight(config, prepared(everything, config), everything.compute))
    elif len(configs) > 1:
        from pipelines import fleet

        options = [f"--set={override}" for override in overrides or ()] + ([f"--recipe={recipe}"] if recipe else [])
        fleet.train(everything, configs, options, recipe, out)
    else:
        (config,) = configs.values()
        spec = prepared(everything, config)
        train(config, spec, preflight(config, spec, everything.compute), out)


def chosen(everything: Params, names: str) -> list[str]:
    """The models that `all` or a list such as vae,dcgan names; each once."""
    from pipelines.fleet import all_models

    return all_models(everything) if names == "all" else list(dict.fromkeys(names.split(",")))


def prepared(everything: Params, config: RunConfig) -> DataSpec:
    """The data set's description; shards are made where they are missing, or older than source or parameters."""
    from genmodels.data.shards import open_shards
    from genmodels.data.sources import is_available
    from genmodels.data.store import adopt
    from pipelines.prepare import prepare
    from pipelines.tracking import exclusive

    folder, dataset = shards(config.dataset), everything.dataset(config.dataset)
    if is_available(dataset, root()) or not (folder.is_dir() or dataset.store):
        prepare(everything, config.dataset)
        return open_shards(folder).spec
    with exclusive(f"prepare-{config.dataset}"):
        if dataset.store and not folder.is_dir():
            adopt(dataset.store, folder)
    manifest = open_shards(folder)  # as on a cluster that was given the shards alone
    print(f"{config.dataset}: its source is not on this machine, using the shards in {manifest.store or folder}")
    return manifest.spec


@dataclass(frozen=True)
class Plan:
    """What a training will do."""

    title: str
    num_parameters: dict[str, int]  # by network
    stages: tuple[Stage, ...]
    compute: ComputeConfig  # with the number of workers settled


def preflight(config: RunConfig, spec: DataSpec, compute: ComputeConfig) -> Plan:
    """The plan; all that can be wrong with it is found here, in seconds, before Ray starts."""
    import torch

    from genmodels.trainer import check_stages
    from pipelines import cluster, moved
    from pipelines.worker import build_model

    moved.check()
    size = config.train.image_size
    if size and size not in spec.sizes:
        raise ValueError(f"models.{config.model}.train.image_size {size}: {spec.name} has sizes {_words(spec.sizes)}")
    domain = spec.domain_of_image(config.train.domain)
    extractor_path(compute, spec, config.evaluation)  # says so if it is not there
    with torch.device("meta"):
        model = build_model(config, spec)
    for key in model.batch_keys:
        if key not in spec.keys:
            raise ValueError(f"{config.model} needs {key!r}, data set {spec.name} offers {_words(spec.keys)}")
    _check_samples(model, spec, shards(config.dataset), domain, shard_cache(compute))
    stages = model.stages(config.train.num_images, config.train.batch_size)
    compute = cluster.resolve(compute, [stage.batch_size for stage in stages], model.least_share)
    for num_workers in compute.worker_counts:
        try:
            check_stages(stages, num_workers, model.least_share)
        except ValueError as error:
            between = compute.worker_counts[:1] != compute.worker_counts[-1:]
            raise ValueError(f"{error}{f' (compute.num_workers {compute.num_workers})' if between else ''}") from None
    for stage in stages:
        if stage.image_size not in spec.sizes:
            raise ValueError(
                f"stage {stage.name!r} needs {stage.image_size} px, {spec.name} has sizes {_words(spec.sizes)}"
                " (datasets.NAME.pyramid: true writes the smaller ones)"
            )
    _check_cache(config, model, stages, shard_cache(compute))
    title = f"{config.model} on {config.dataset}{f', domain {domain}' if domain else ''} ({spec.num_train:,} images)"
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in model.named_children()}
    return Plan(title, sizes, stages, compute)


def _check_samples(model: GenerativeModel, spec: DataSpec, folder: Path, domain: str | None, cache: ShardCache) -> None:
    """ValueError where too few images are held out to score a snapshot by, or attributes are not as they should be."""
    from genmodels.data.reader import ShardReader
    from genmodels.metrics.images import FEWEST

    split = "test" if spec.num_test else "train"
    streams = {key.removeprefix("image_") for key in (*model.batch_keys, model.output_key) if key.startswith("image_")}
    domains: list[str | None] = [*sorted(streams)] or [domain]
    for each in domains:
        num = ShardReader(folder, split, spec.sizes[0], each, cache).num if each else spec.num_test or spec.num_train
        if num < FEWEST:
            which = f"{spec.name}{f', domain {each}' if each else ''} {'holds out' if spec.num_test else 'has'} {num}"
            more = f"add test images, or, where the source has none of its own, raise datasets.{spec.name}.holdout"
            raise ValueError(f"{which} of the {FEWEST} images that a score takes at least: {more}")
    if "attributes" in model.batch_keys:
        model.check_attributes(ShardReader(folder, "train", spec.sizes[0], cache=cache).attributes)


def _check_cache(config: RunConfig, model: GenerativeModel, stages: tuple[Stage, ...], cache: ShardCache) -> None:
    """ValueError where the data set's shards lie in a store and the cache is too small to stream them."""
    from genmodels.data.prefetch import check_limit
    from genmodels.data.shards import open_shards

    manifest = open_shards(shards(config.dataset))
    num_streams = sum(key.startswith("image_") for key in model.batch_keys) or 1
    for size in {stage.image_size for stage in stages} if manifest.store else ():
        check_limit(cache, [s for s in manifest.shards if (s.split, s.size) == ("train", size)], num_streams)


def show(plan: Plan) -> None:
    """Prints a plan."""
    print(f"{plan.title}, {sum(stage.num_images for stage in plan.stages):,} images shown")
    for name, number in plan.num_parameters.items():
        print(f"  {name}: {number:,} parameters")
    for stage in plan.stages:
        print(f"  stage {stage.name}: {stage.num_images:,} images of {stage.image_size} px, batch {stage.batch_size}")


def train(config: RunConfig, spec: DataSpec, plan: Plan, out: Path | None, registered: bool = True) -> None:
    """Runs the training to its end: workers, tracking, export, and registration unless that is not wanted."""
    from genmodels.metrics.judge import ensure_extractor
    from pipelines import cluster, outcome
    from pipelines.console import Console
    from pipelines.run import open_run, owned
    from pipelines.stopping import stoppable
    from pipelines.tracking import Tracker

    compute = plan.compute
    run = open_run(storage(compute), config, shards(config.dataset), spec.digest)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with owned(run) as attempt, noted_failure(run):
        folder, cache = shards(config.dataset), shard_cache(compute)
        _check_place_of_checkpoints(run, compute.checkpoint_store)
        registered = registered or run.info.get("registered", False)  # once wanted, whoever brings it to its end
        run.update(status="running", **described(run, config, spec, plan), registered=registered)
        draw_data(run, folder, cache)
        extractor = extractor_path(compute, spec, config.evaluation)
        ensure_extractor(extractor, folder, spec, config.evaluation, cache)
        print(f"run {run.name} in {run.folder}", flush=True)
        tracker = Tracker(run, run.info["described"], run.info["tags"])
        with tracker, Console(run, plan.stages), stoppable(run):
            cluster.train(run, attempt, extractor, compute)
            last = run.events()[-1]
            if last["type"] == "failed":
                tracker.close("FAILED")
                raise UserError(last["reason"])
            if last["type"] == "stopped":
                run.update(status="stopped")
                raise KeyboardInterrupt
        summary = outcome.finish(run, tracker)
        if out:
            outcome.publish(run, summary, out)
        run.update(status="finished", result=summary)


def _check_place_of_checkpoints(run: Run, store: str | None) -> None:
    """UserError where a run's checkpoints lie elsewhere than it would look for them now, or others' where it would."""
    from genmodels.checkpoint import Checkpoints
    from pipelines.worker import open_checkpoints

    before, ran = run.info.get("checkpoint_store"), "described" in run.info
    if store and not ran and Checkpoints(f"{store}/{run.place}", 1).place.titles():
        raise UserError(
            f"{store}/{run.place} holds checkpoints of a run that {run.folder.parent} does not know: remove them, or"
            " name another compute.checkpoint_store"
        )
    if ran and before != store and open_checkpoints(run).place.titles():
        raise UserError(
            f"run {run.name} has its checkpoints in {before or run.folder / 'checkpoints'}, but"
            f" compute.checkpoint_store is {store or 'null'} now: set it as it was; or remove {run.folder},"
            " and it starts anew"
        )


@contextmanager
def noted_failure(run: Run) -> Iterator[None]:
    """Writes into run.json that a training failed, whatever it failed of."""
    try:
        yield
    except Exception:
        with suppress(OSError):  # of a full disk; the fault itself says more
            run.update(status="failed")
        raise


def described(run: Run, config: RunConfig, spec: DataSpec, plan: Plan) -> dict[str, Any]:
    """What workers and MLflow need to know of a run, for its run.json."""
    from genmodels.data.shards import open_shards
    from pipelines.tracking import git_tags

    compute, folder = plan.compute, shards(config.dataset)
    manifest = open_shards(folder)
    tags = {"model": config.model, "dataset": config.dataset, "data_digest": spec.digest, **git_tags()}
    return {
        "data": spec.to_json(),
        "shards": str(folder),
        "cache": shard_cache(compute).to_json(),
        "checkpoint_store": compute.checkpoint_store,
        "data_source": manifest.source,
        "data_counts": manifest.counts,
        "described": {**config.to_json(), "compute": compute.model_dump(), "num_parameters": plan.num_parameters},
        "tags": {**tags, "folder": str(run.folder), "mlflow.source.name": command_line()},
        "command": command_line(),
    }


def draw_data(run: Run, folder: Path, cache: ShardCache) -> None:
    """The data set's contact sheet in the run's folder, once: MLflow is fed from there."""
    from genmodels.data.contact import contact_sheet
    from genmodels.files import write_atomic

    if not run.data_picture.exists():
        sheet = contact_sheet(folder, cache)
        write_atomic(run.data_picture, lambda file: sheet.save(file, "PNG"))


def command_line() -> str:
    """The command that runs here, as one would type it at the project's root."""
    return shlex.join(["python", f"pipelines/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def _words(values: Any) -> str:
    return ", ".join(str(value) for value in values) or "none"


if __name__ == "__main__":
    typer.run(main)
