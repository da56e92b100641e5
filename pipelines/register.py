"""Registers a training's result with its scores; the same weights are never registered twice.

python pipelines/register.py --model data/models/vae --scores data/evaluations/vae/evaluation.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.project import UserError, command


@command
def main(
    model: Annotated[Path, typer.Option(help="what train.py --out wrote")],
    scores: Annotated[Path | None, typer.Option(help="what evaluate.py --out wrote")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the version")] = None,
) -> None:
    """Makes sure that MODEL is a version with its scores as tags, and that `champion` is the best."""
    from genmodels.metrics.evaluate import Protocol
    from genmodels.model import model_class
    from pipelines import registry
    from pipelines.evaluate import proof_table

    for path in (model / "export", model / "run.json", *([scores] if scores else [])):
        if not path.exists():
            raise UserError(f"{path} is missing; train.py --out and evaluate.py --out write it")
    run = json.loads((model / "run.json").read_text())
    tags, score, protocol, evidence = {"run": run["run"]}, run["score"], run["protocol"], ""
    if scores:
        measured = json.loads(scores.read_text())
        score = measured["scores"][model_class(measured["model"]).metric.name]
        protocol = Protocol(**measured["protocol"]).digest
        tags |= {name: f"{value:.5g}" for name, value in measured["scores"].items()}
        tags["proofs"] = f"{sum(proof['holds'] for proof in measured['proofs'])} of {len(measured['proofs'])} shown"
        evidence = f"## Evidence\n\n{proof_table(measured['proofs'])}\n"
    version, champion = registry.register(model / "export", run.get("mlflow_run_id"), score, protocol, tags, evidence)
    print(f"version {version}{', the champion' if champion else ''}")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"version": version, "champion": champion}) + "\n")


if __name__ == "__main__":
    typer.run(main)
