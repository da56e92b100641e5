"""What a crash leaves on this machine, beside runs: temporary files and folders, locks, Ray sessions.

Nothing that a living process may still use is a finding: locks say so where there are any (the kernel lets go of a
dead process's), process numbers elsewhere. In shared memory Ray leaves nothing: it unlinks what it has opened.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from genmodels.files import exclusive, write_json
from pipelines.run import Run, held

TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.(tmp|old)")  # the siblings of genmodels.files
QUIET = 3600.0  # seconds without a change: another machine, whose processes we do not see, may share the folder


@dataclass(frozen=True)
class Finding:
    """Something that is left; `mend` None: nothing is wrong with it, `mending` says who goes on with it."""

    what: str
    where: Path | str
    mending: str
    mend: Callable[[], object] | None


def is_free(path: Path) -> bool:
    """Whether no process on this machine holds a lock on a file or folder."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS: no lock on what one only reads
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def temporary_files(folders: list[Path]) -> Iterator[Finding]:
    """Siblings that `write_atomic` and `replace_folder` made in a process that died."""
    for folder in folders:
        for path in sorted(folder.rglob(".*")):
            if (match := TEMPORARY.fullmatch(path.name)) and _is_abandoned(path, int(match[2])):
                whole = path.with_name(match[1])
                if match[3] == "old" and not whole.exists():
                    yield Finding("a folder half replaced", path, f"renames it to {whole.name}", _rename(path, whole))
                else:
                    yield Finding("half written", path, "removes it", partial(remove, path))


def _is_abandoned(path: Path, pid: int) -> bool:
    """Whether nobody writes it any more: in a run's folder, nobody holds the run; elsewhere its process is dead."""
    run = next((Run(folder) for folder in path.parents if (folder / "run.json").is_file()), None)
    if run and (run.folder / "lock").exists():
        return not held(run)
    return not psutil.pid_exists(pid) and time.time() - path.stat().st_mtime > QUIET


def _rename(path: Path, to: Path) -> Callable[[], object]:
    return lambda: path.rename(to)


def data_sets(folder: Path, known: set[str]) -> Iterator[Finding]:
    """What a killed preparation left beside the data sets in `folder`."""
    for path in sorted(folder.glob(".*.partial")):
        name = path.name[1 : -len(".partial")]
        if is_free(path) and name in known:
            yield Finding("a data set half prepared", path, f"python pipelines/prepare.py --dataset {name}", None)
        elif is_free(path):
            yield Finding(
                "half of a data set that params.yaml does not name", path, "removes it", partial(remove, path)
            )
    for path in sorted(folder.glob(".*.replaced")):
        whole = path.with_name(path.name[1 : -len(".replaced")])
        in_making = path.with_name(f".{whole.name}.partial")
        if in_making.exists() and not is_free(in_making):
            continue
        if whole.exists():
            yield Finding("a data set that was replaced", path, "removes it", partial(remove, path))
        else:
            yield Finding("a data set half replaced", path, f"renames it to {whole.name}", _rename(path, whole))


def fetches(cache: Path) -> Iterator[Finding]:
    """Shards that a killed process was fetching."""
    for path in sorted(cache.glob("*.part")):
        lock = path.with_suffix(".lock")
        if not lock.exists() or is_free(lock):
            yield Finding("a shard half fetched", path, "removes it", partial(remove, path))


def unpacked() -> Iterator[Finding]:
    """Unpacked archives of killed preparations; whoever reads one holds its folder's lock."""
    for path in sorted(Path(tempfile.gettempdir()).glob("genmodels-*")):
        if path.is_dir() and path.stat().st_uid == os.getuid() and is_free(path):
            yield Finding("unpacked files that nobody uses", path, "removes them", partial(remove, path))


def dvc_locks(folder: Path) -> Iterator[Finding]:
    """Entries of dead processes in DVC's table of who reads and writes what; its other lock ends with its process."""
    table = folder / ".dvc/tmp/rwlock"
    if not table.is_file():
        return
    try:
        entries = json.loads(table.read_text())
        dead = {str(entry["pid"]) for entry in _entries(entries) if not _runs_dvc(entry["pid"])}
    except (ValueError, KeyError, TypeError):
        yield Finding(
            "DVC's table of locks is damaged, every command fails", table, "removes it", partial(remove, table)
        )
        return
    if dead:
        what = f"DVC's locks of dead processes ({', '.join(sorted(dead))})"
        yield Finding(what, table, "removes their entries", partial(_release, table))


def _entries(table: dict) -> list[dict]:
    readers = [entry for entries in table.get("read", {}).values() for entry in entries]
    return [*readers, *table.get("write", {}).values()]


def _runs_dvc(pid: int) -> bool:
    try:
        return any("dvc" in part for part in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _release(table: Path) -> None:
    with exclusive(table.with_name("rwlock.lock")):  # DVC's own guard
        entries = json.loads(table.read_text())
        alive = {
            path: kept
            for path, readers in entries.get("read", {}).items()
            if (kept := [entry for entry in readers if _runs_dvc(entry["pid"])])
        }
        writers = {path: entry for path, entry in entries.get("write", {}).items() if _runs_dvc(entry["pid"])}
        write_json(table, {"write": writers, "read": alive})


def ray_sessions() -> Iterator[Finding]:
    """Folders of dead Ray sessions that this project started."""
    top = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    for path in sorted(top.glob("session_*")):
        ours = not path.is_symlink() and (path / "genmodels").exists() and path.stat().st_uid == os.getuid()
        if ours and not any(path.name in command for command in commands):
            yield Finding("logs of a Ray that has ended", path, "removes them", partial(remove, path))
