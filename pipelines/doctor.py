"""Lists what a crash or a power cut has left, and with --mend clears it up.

python pipelines/doctor.py            # a line a finding; changes nothing; exit code 1 if there is one
python pipelines/doctor.py --mend
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.project import Overrides, UserError, command, params, shard_cache, shards, storage, store_root

if TYPE_CHECKING:
    from genmodels.config import Params
    from pipelines.leftovers import Finding
    from pipelines.run import Run


@command
def main(
    mend: Annotated[bool, typer.Option("--mend", help="do what the lines say")] = False, overrides: Overrides = None
) -> None:
    """Says what is left of crashed commands, where, and what mending does."""
    findings = list(examine(params(overrides)))
    wrong = [finding for finding in findings if finding.mend]
    for finding in findings:
        if not finding.mend:
            print(f"{finding.where}: {finding.what}; goes on with: {finding.mending}")
    unmended = sum(not treat(finding, mend) for finding in wrong)
    if not findings:
        print("nothing is left of any crash")
    if unmended:
        raise SystemExit(1)


def treat(finding: Finding, mend: bool) -> bool:
    """Mends a finding if that is wanted, and prints it; whether it is mended."""
    from pipelines.sync import away_in_one_line

    line = f"{finding.where}: {finding.what}"
    if not mend:
        print(f"{line}; --mend {finding.mending}")
        return False
    assert finding.mend
    try:
        with away_in_one_line():
            finding.mend()
    except (OSError, UserError) as error:
        print(f"{line}; not mended: {error}")
        return False
    print(f"{line}; mended: {finding.mending}")
    return True


def examine(everything: Params) -> Iterator[Finding]:
    """Everything that is left, the most important first."""
    from pipelines import leftovers, moved

    folder = storage(everything.compute)
    yield from moved.findings()
    yield from runs(folder)
    yield from leftovers.dvc_locks(store_root())
    made = [path for path in (store_root() / "data").glob("*") if path.is_dir() and path.name != "raw"]
    yield from leftovers.temporary_files(made if folder.parent == store_root() / "data" else [*made, folder])
    yield from leftovers.data_sets(shards("any").parent, set(everything.datasets))
    yield from leftovers.fetches(shard_cache(everything.compute).folder)
    yield from leftovers.unpacked()
    yield from leftovers.ray_sessions()


def runs(folder: Path) -> Iterator[Finding]:
    """Runs that nobody holds and that say they are running, on disk or in MLflow, or that MLflow has not got all of."""
    from pipelines.leftovers import Finding
    from pipelines.run import all_runs, held
    from pipelines.sync import away_in_one_line

    idle = [run for run in all_runs(folder) if not held(run)]
    for run in idle:
        if run.info["status"] == "running":
            yield _interrupted(run)
    try:
        with away_in_one_line():
            findings = [*_tracked([run for run in idle if run.events()]), *_orphans(folder)]
        yield from findings
    except UserError as error:
        yield Finding("no run was compared with it", "MLflow", "does nothing about that", partial(_fail, error))


def _interrupted(run: Run) -> Finding:
    from pipelines.leftovers import Finding
    from pipelines.sync import synced

    shown = max((event["num_images"] for event in run.events()), default=0)
    goes_on = run.info.get("command", f"python pipelines/train.py --model {run.config.model}")
    what = f"a training that ended without a word at image {shown:,}; it goes on with: {goes_on}"
    return Finding(what, run.folder, "marks it KILLED, which changes nothing about that", partial(synced, run))


def _tracked(idle: list[Run]) -> Iterator[Finding]:
    """Runs that have ended of which MLflow does not know all."""
    from pipelines.leftovers import Finding
    from pipelines.sync import is_complete, synced

    for run in idle:
        if run.info["status"] != "running" and not is_complete(run):
            what = "MLflow has not got all of this run"
            yield Finding(what, run.folder, "does for it what pipelines/sync.py does for all", partial(synced, run))


def _orphans(folder: Path) -> Iterator[Finding]:
    """MLflow runs that are RUNNING for a run folder that is gone, or that another MLflow run stands for."""
    from pipelines.leftovers import Finding
    from pipelines.run import Run
    from pipelines.tracking import connected, end, known_experiment

    if (experiment := known_experiment()) is None:
        return
    client = connected().MlflowClient()
    for tracked in client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=1000):
        place, run_id = Path(tracked.data.tags.get("folder", "/")), tracked.info.run_id
        known = Run(place).info["mlflow_run_id"] if (place / "run.json").is_file() else None
        if place.parent == folder and known != run_id:
            what = f"MLflow run {run_id} is RUNNING, its folder is gone"
            yield Finding(what, place, "marks it KILLED", partial(end, run_id, "KILLED"))


def _fail(error: Exception) -> Any:
    raise error


if __name__ == "__main__":
    typer.run(main)
