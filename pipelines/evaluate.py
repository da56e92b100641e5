"""Scores a sampling folder or a registered model on held-out images, with the model's own proofs.

python pipelines/evaluate.py --model progan@champion --out DIR
"""

from __future__ import annotations

import csv
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.project import Overrides, UserError, command, extractor_path, params, shard_cache, shards, storage

if TYPE_CHECKING:
    from torch import Tensor

    from genmodels.config import ComputeConfig, RunConfig
    from genmodels.export import Sampler

KEYS = {"model", "sha256", "scores", "real_vs_real", "protocol", "proofs"}  # of evaluation.json
NUM_PROOF_IMAGES, PROOF_BYTES = 4096, 2**30  # training images that proofs look at, and what they take at most


@command
def main(
    model: Annotated[str, typer.Option(help="a sampling folder, NAME@ALIAS, NAME/VERSION, or an MLflow run id")],
    out: Annotated[Path | None, typer.Option(help="folder for evaluation.json and scores.json")] = None,
    overrides: Overrides = None,
) -> None:
    """Computes every score by the protocol of params.yaml, beside real against real, and the model's proofs."""
    from genmodels import export
    from genmodels.files import write_json
    from pipelines import places, registry

    if out:
        places.check_folder(out)
    folder = registry.find(model)
    everything, sampler = params(overrides), export.load(folder)
    config = everything.run(sampler.info["model"])
    result, pictures = evaluate(config, everything.compute, folder, sampler)
    show(result)
    drawn = []
    if out:
        write_json(out / "evaluation.json", result)
        write_json(out / "scores.json", summary(result))
        drawn = save_pictures(pictures, out / "pictures")
    if run_id := _run_id(folder):
        track(run_id, result, drawn)


def track(run_id: str, result: dict[str, Any], pictures: list[Path]) -> None:
    """Adds an evaluation to its MLflow run; where that is away, a warning says so: the files are what counts."""
    from mlflow.exceptions import MlflowException

    from genmodels.credentials import masked
    from pipelines import tracking

    try:
        tracking.log_scores(run_id, summary(result), result, pictures)
    except (OSError, MlflowException) as error:
        print(f"warning: MLflow has not got these scores ({masked(str(error).splitlines()[0])})", file=sys.stderr)


def show(result: dict[str, Any]) -> None:
    """Prints scores and proofs."""
    print(f"{'score':>14} {'samples':>10} {'real':>10}")
    for name, value in result["scores"].items():
        print(f"{name:>14} {value:10.4g} {result['real_vs_real'].get(name, math.nan):10.4g}")
    for proof in result["proofs"]:
        shown = "shown" if proof["holds"] else "NOT shown"
        print(f"{shown}: {proof['claim']}: {proof['measured']:.4g} against {proof['baseline']:.4g} {proof['unit']}")
    if result["protocol"]["split"] == "train":
        print("the data set holds nothing out: scores are those of training images, and nothing is proved")


def summary(result: dict[str, Any]) -> dict[str, float]:
    """The numbers that runs are compared by."""
    proofs = result["proofs"]
    return {**result["scores"], "proofs_shown": sum(proof["holds"] for proof in proofs), "proofs": len(proofs)}


def proof_table(proofs: list[dict[str, Any]]) -> str:
    """The proofs in Markdown."""
    rows = [
        f"| {each['claim']} | {each['measured']:.4g} | {each['baseline']:.4g} | {'yes' if each['holds'] else 'NO'} |"
        for each in proofs
    ]
    return "\n".join(["| what it must show | measured | baseline | shown |", "|---|---|---|---|", *rows])


def evaluate(
    config: RunConfig, compute: ComputeConfig, folder: Path, sampler: Sampler
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Scores, their protocol and scale, and proofs, as plain values; and the pictures that go with them."""
    from dataclasses import asdict

    from genmodels.data.fields import DataSpec
    from genmodels.data.shards import open_shards
    from genmodels.metrics.evaluate import reference_scores
    from genmodels.metrics.features import extract
    from genmodels.metrics.judge import Judge, ensure_extractor
    from genmodels.model import ProofContext

    info, model = sampler.info, sampler.model
    spec = DataSpec.from_json(info["data"])
    if domain := info["info"].get("domain"):  # that it was trained on, whatever params.yaml says now
        config = config.model_copy(update={"train": config.train.model_copy(update={"domain": domain})})
    path = shards(spec.name)
    if open_shards(path).spec.digest != spec.digest:
        raise UserError(f"{path} holds other data than {info['model']} was trained on (digest {spec.digest[:12]})")
    extractor_file = extractor_path(compute, spec, config.evaluation)
    cache = shard_cache(compute)
    extractor = ensure_extractor(extractor_file, path, spec, config.evaluation, cache)
    judge = Judge(path, spec, config, extractor_file, cache=cache)
    size = sampler.progress.stage.image_size
    samples = judge.draw(sampler)
    scores = judge.score(model, samples)
    test, paired = judge.held_out(size)
    protocol = judge.protocol(model, size)
    history = read_history(folder.parent / "scores.csv") or _run_history(storage(compute) / info["info"].get("run", ""))
    comparable = [row for row in history if row.get("protocol", protocol.digest) == protocol.digest]
    if history and not comparable:
        print("the training was scored by another protocol: no proof sets its scores against these", file=sys.stderr)
    num_train = max(64, min(NUM_PROOF_IMAGES, PROOF_BYTES // (4 * spec.channels * size**2)))
    context = ProofContext(
        train=judge.read("train", size, num_train)[0],
        test=test,
        paired=paired,
        samples=samples,
        features=lambda images: extract(extractor, images) if extractor else images.flatten(1),
        scores=scores,
        history=comparable,
    )
    result = {
        "model": info["model"],
        "sha256": info["sha256"],
        "num_images": sampler.progress.num_images,
        "scores": scores,
        "real_vs_real": reference_scores(judge.reals(model, size), extractor),
        "protocol": protocol.to_json(),
        # Proofs speak of held-out images.
        "proofs": [asdict(proof) for proof in model.proofs(context)] if spec.num_test else [],
    }
    pictures = model.pictures(context)
    return result | {"pictures": sorted(pictures)}, pictures


def save_pictures(pictures: dict[str, Tensor], folder: Path) -> list[Path]:
    """Writes each [rows, columns, C, H, W] as one grid, NAME.png, and returns the paths; leaves other files alone."""
    from genmodels.files import write_atomic
    from genmodels.pictures import grid

    folder.mkdir(parents=True, exist_ok=True)  # also where a model has none: DVC asks for it
    paths = []
    for name, images in pictures.items():
        sheet = grid(images.flatten(0, 1), columns=images.shape[1])
        paths.append(folder / f"{name}.png")
        write_atomic(paths[-1], partial(sheet.save, format="PNG"))
    return paths


def read_result(file: Path) -> dict[str, Any]:
    """An evaluation; UserError where it is none."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is no evaluation ({error}); evaluate.py makes it again") from None
    if missing := KEYS - set(result if isinstance(result, dict) else ()):
        raise UserError(f"{file} is no evaluation, it lacks {', '.join(sorted(missing))}; evaluate.py makes it again")
    return dict(result)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The snapshots of a training, from the table beside its export; empty without it."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{name: _value(name, text) for name, text in row.items() if text != ""} for row in csv.DictReader(file)]


def _run_history(run: Path) -> list[dict[str, Any]]:
    """The same of a registered model, beside whose folder no table lies, from its run; empty where that is not here."""
    from pipelines.outcome import history
    from pipelines.run import Run

    return history(Run(run).events()) if (run / "events.jsonl").is_file() else []


def _value(name: str, text: str) -> float | str:
    if name in ("stage", "protocol"):  # a digest may look like a number
        return text
    return float(text)


def _run_id(folder: Path) -> str | None:
    run_file = folder.parent / "run.json"
    return json.loads(run_file.read_text()).get("mlflow_run_id") if run_file.is_file() else None


if __name__ == "__main__":
    typer.run(main)
