"""A folder that appears whole or not at all: written beside its place by one process, then swapped with it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genmodels.data.remote import Outage


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A sibling folder to write into, swapped with `out` at the end; removed when something fails.

    What a killed or interrupted run left in it, or one that lost its store, is there for the next to go on with.
    """
    folder, replaced = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.replaced")
    with _locked(folder):
        if replaced.exists() and not out.exists():  # an earlier run was killed between its two renames
            replaced.rename(out)
        try:
            yield folder
        except Outage:
            raise
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
        if out.exists():
            out.rename(replaced)
        folder.rename(out)
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A folder that one process owns; the lock ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _owns(descriptor, folder):
            raise ValueError(f"{folder} is in use: another process prepares this data set")
        yield
    finally:
        os.close(descriptor)


def _owns(descriptor: int, folder: Path) -> bool:
    """Takes the lock; False if another process has it, or has just moved the folder to its place."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def disk_errors(out: Path, num_bytes: int, encoding: str) -> Iterator[None]:
    """A full disk, or a quota, named with path and bytes; before anything is written where the size is known."""
    try:
        if encoding == "raw" and shutil.disk_usage(out.parent).free < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(out.parent).free
        raise OSError(error.errno, f"{out}: no room, needs up to {num_bytes:,} bytes, {free:,} are free") from error
