"""A project that was moved: its own MLflow store, a SQLite file, knows the places of artifacts by absolute paths."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from pipelines.leftovers import Finding
from pipelines.project import UserError, store_root
from pipelines.tracking import EXPERIMENT, uri

PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def check() -> None:
    """UserError where artifacts would be written to, or looked for in, the project's former place."""
    if old := former_artifacts():
        raise UserError(f"{_store()} has its artifacts in {old}: the project was moved; pipelines/doctor.py --mend")


def findings() -> Iterator[Finding]:
    """A store that names the former place."""
    if old := former_artifacts():
        left = f"; what lies in {old} stays there" if old.is_dir() else ""
        what = f"the project was moved, the store has its artifacts in {old}"
        yield Finding(what, _store(), f"names {_artifacts()} instead{left}", partial(rename, old))


def former_artifacts() -> Path | None:
    """Where the project's own store has its artifacts, if that is another project's place; None for any other store."""
    if uri() != f"sqlite:///{_store()}" or not _store().is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{_store().as_uri()}?mode=ro", uri=True)) as store:
            found = store.execute("SELECT artifact_location FROM experiments WHERE name = ?", [EXPERIMENT]).fetchone()
    except sqlite3.Error:  # MLflow says it better
        return None
    here = _artifacts()
    if found is None or "://" in found[0] or Path(found[0]).name != here.name:  # none of our making
        return None
    return None if Path(found[0]).resolve() == here.resolve() else Path(found[0])


def rename(old: Path) -> None:
    """Puts this project's place instead of `old` wherever the store has it, or nowhere."""
    if old.is_dir() and not _artifacts().is_dir():
        raise UserError(f"{_artifacts()} is missing; copy {old} there first")
    before, now = str(old), str(_artifacts())
    try:
        with closing(sqlite3.connect(_store(), timeout=60)) as store, store:
            for table, column in PLACES:
                store.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 - names of ours
                    f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    [now, len(before) + 1, before, len(before) + 1, f"{before}/"],
                )
    except sqlite3.Error as error:
        raise UserError(f"{_store()}: {error}") from None


def _store() -> Path:
    return store_root() / "mlflow.db"


def _artifacts() -> Path:
    return store_root() / "mlartifacts"
