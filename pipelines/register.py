"""Registers a training's result, or chooses a champion by hand; the same weights are never registered twice.

python pipelines/register.py --model data/models/vae --scores data/evaluations/vae/evaluation.json
python pipelines/register.py --run RUN_ID --alias champion     # a run's name, or its id in MLflow
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.project import UserError, command

if TYPE_CHECKING:
    from pipelines.run import Run


@command
def main(
    model: Annotated[Path | None, typer.Option(help="what train.py --out wrote")] = None,
    scores: Annotated[Path | None, typer.Option(help="what evaluate.py --out wrote")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the version")] = None,
    run: Annotated[str | None, typer.Option(help="an ended run's name or MLflow id, finished or not")] = None,
    alias: Annotated[str | None, typer.Option(help="give the version this alias, and leave it there")] = None,
    force: Annotated[bool, typer.Option("--force", help="champion even after NaN or with images missing")] = False,
) -> None:
    """Makes sure that what came of a training is a version; `champion` is the best, unless a person chose."""
    from pipelines import places, registry

    if (model is None) == (run is None):
        raise UserError("give one of --model FOLDER and --run RUN")
    if out:
        places.check_file(out)
    name, number, best = _result(model, scores) if model else _of_run(str(run))
    if alias:
        registry.choose(name, number, alias, force)
    print(f"{name} version {number}{f', {alias} now' if alias else ', the champion' if best else ''}")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"version": number, "champion": best}) + "\n")


def _of_run(reference: str) -> tuple[str, int, bool]:
    """Registers the best weights of a run on this machine; elsewhere, finds the version that came of it."""
    from pipelines import outcome, registry
    from pipelines.project import params, storage
    from pipelines.run import all_runs, held

    runs = all_runs(storage(params(None).compute))
    run = next((each for each in runs if reference in (each.name, each.info["mlflow_run_id"])), None)
    if run:
        if held(run):
            # Its best may change at any moment.
            raise UserError(f"run {run.name} is under way; wait for its end, or end it")
        made = outcome.register(run, outcome.summarize(run))
        _say_ended(run)
        return run.config.model, made["version"], made["champion"]
    if found := registry.of_run(reference):
        return *found, False
    raise UserError(
        f"no run {reference!r} here, nor a version of it; runs: {', '.join(each.name for each in runs) or 'none'}"
    )


def _say_ended(run: Run) -> None:
    """Says in MLflow how a run ended whose driver was killed before it did."""
    from pipelines import sync
    from pipelines.tracking import connected, end

    run_id = run.info["mlflow_run_id"]
    if run_id and connected().MlflowClient().get_run(run_id).info.status == "RUNNING":
        end(run_id, sync.ended(run.info), int(run.events()[-1]["time"] * 1000))


def _result(model: Path, scores: Path | None) -> tuple[str, int, bool]:
    """Registers what train.py wrote, with its scores as tags."""
    from genmodels import export
    from genmodels.metrics.evaluate import Protocol
    from genmodels.model import model_class
    from pipelines import registry
    from pipelines.evaluate import proof_table, read_result

    for path in (model / "export", model / "run.json", *([scores] if scores else [])):
        if not path.exists():
            raise UserError(f"{path} is missing; train.py --out and evaluate.py --out write it")
    run = json.loads((model / "run.json").read_text())
    tags, score, protocol, evidence = {key: run[key] for key in ("run", "ended")}, run["score"], run["protocol"], ""
    if scores:
        measured = read_result(scores)
        if measured["sha256"] != export.read_config(model / "export")["sha256"]:
            raise UserError(f"{scores} is of other weights than {model / 'export'}; evaluate.py scores these")
        score = measured["scores"][model_class(measured["model"]).metric.name]
        protocol = Protocol(**measured["protocol"]).digest
        tags |= {name: f"{value:.5g}" for name, value in measured["scores"].items()}
        tags["proofs"] = f"{sum(proof['holds'] for proof in measured['proofs'])} of {len(measured['proofs'])} shown"
        evidence = f"## Evidence\n\n{proof_table(measured['proofs'])}\n"
    number, best = registry.register(model / "export", run.get("mlflow_run_id"), score, protocol, tags, evidence)
    return export.read_config(model / "export")["model"], number, best


if __name__ == "__main__":
    typer.run(main)
