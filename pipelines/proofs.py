"""Proofs that take several trainings: the `comparisons` of params.yaml, each variant with each seed.

python pipelines/proofs.py                    # all of them; what is done already is not done again
python pipelines/proofs.py --only growing
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.project import Overrides, UserError, command, params, root

if TYPE_CHECKING:
    from genmodels.config import Comparison, Params, RunConfig


@command
def main(
    only: Annotated[list[str] | None, typer.Option(help="a comparison; may be given several times")] = None,
    overrides: Overrides = None,
) -> None:
    """Trains and evaluates what is missing, then says which claims hold; exit code 1 names those that do not."""
    everything = params(overrides)
    for name in only or ():
        if name not in everything.comparisons:
            raise UserError(f"unknown comparison {name!r}; choices: {', '.join(everything.comparisons) or 'none'}")
    chosen = only or list(everything.comparisons)
    results = {name: compare(everything, name, everything.comparisons[name]) for name in chosen}
    show(results)
    missing = [name for name, result in results.items() if not result["holds"]]
    if missing:
        raise SystemExit(f"not shown: {', '.join(missing)}")


def compare(everything: Params, name: str, comparison: Comparison) -> dict[str, Any]:
    """Every variant's evaluations, and whether the claim holds; also in data/proofs/NAME/comparison.json."""
    from genmodels.files import write_json

    folder = root() / "data/proofs" / name
    evaluations: dict[str, list[dict[str, Any]]] = {key: [] for key in comparison.variants}
    for seed in range(comparison.seeds):
        for key, variant in comparison.variants.items():
            changes = {**variant.changes, "train": {**variant.changes.get("train", {}), "seed": seed}}
            config = everything.run(variant.model, changes=changes)
            evaluation = evaluated(everything, config, folder / f"{key}-{seed}")
            if comparison.score and comparison.score not in evaluation["scores"]:
                where, measured = f"comparisons.{name}.score {comparison.score!r}", ", ".join(evaluation["scores"])
                raise UserError(f"{where} is not measured of {variant.model} on {config.dataset}; choices: {measured}")
            evaluations[key].append(evaluation)
    result = {"claim": comparison.claim, "score": comparison.score, **judge(comparison, evaluations)}
    write_json(folder / "comparison.json", result)
    return result


def judge(comparison: Comparison, evaluations: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Measured values by variant, a seed each, and whether the claim holds: by the mean over seeds."""
    if comparison.score is None or comparison.better is None:
        proofs = {key: [each["proofs"] for each in several] for key, several in evaluations.items()}
        shown = {key: [sum(proof["holds"] for proof in each) for each in several] for key, several in proofs.items()}
        # Where nothing is held out there are no proofs, and so nothing is shown.
        holds = all(each and all(proof["holds"] for proof in each) for several in proofs.values() for each in several)
        return {"measured": shown, "holds": holds}
    scores = {key: [each["scores"][comparison.score] for each in several] for key, several in evaluations.items()}
    means = {key: sum(values) / len(values) for key, values in scores.items()}
    others = [mean for key, mean in means.items() if key != comparison.better]
    return {"measured": scores, "holds": means[comparison.better] < min(others)}


def evaluated(everything: Params, config: RunConfig, folder: Path) -> dict[str, Any]:
    """The evaluation of one training: read, if it was made of this configuration and data, or made."""
    from genmodels import export
    from genmodels.files import write_json
    from pipelines import evaluate, train

    spec = train.prepared(everything, config)
    identity, file = config.digest(spec.digest), folder / "evaluation.json"
    if file.is_file() and (known := json.loads(file.read_text()))["identity"] == identity:
        return known
    if not _trained(folder / "model", f"{config.model}-{identity}-"):
        plan = train.preflight(config, spec, everything.compute)
        train.train(config, spec, plan, folder / "model", registered=False)
    exported = folder / "model" / "export"
    result, pictures = evaluate.evaluate(config, everything.compute, exported, export.load(exported))
    evaluate.save_pictures(pictures, folder / "pictures")
    write_json(file, {"identity": identity, **result})
    return result


def _trained(model: Path, run: str) -> bool:
    """Whether a finished training lies in a folder, of a run whose name begins so; then its evaluation was cut off."""
    file = model / "run.json"
    return file.is_file() and json.loads(file.read_text())["run"].startswith(run)


def show(results: dict[str, Any]) -> None:
    """One row a variant."""
    from rich.console import Console
    from rich.table import Table

    table = Table("comparison", "what it must show", "variant", "measured, by seed", "shown")
    for name, result in results.items():
        for i, (key, values) in enumerate(result["measured"].items()):
            what = (name, result["claim"]) if i == 0 else ("", "")
            numbers = ", ".join(f"{value:.4g}" for value in values)
            cells = *what, key, f"{result['score'] or 'proofs shown'} {numbers}", "yes" if result["holds"] else "NO"
            table.add_row(*cells)
    Console(markup=False, emoji=False).print(table)  # names may hold brackets


if __name__ == "__main__":
    typer.run(main)
