"""Shards of stores on this machine's disk: checked, bounded, shared by all its processes.

<sha256>.tar     a shard, there by a rename, so whole; its time of change is that of its last use
<sha256>.part    one that is being fetched, in its full length from the start, so it counts
<sha256>.lock    held shared by whoever reads the shard, alone by whoever fetches or removes it; the kernel lets go of a
                 dead process's locks, so nothing needs repair after a kill -9
space.lock       held alone while room is made
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genmodels.data.shards import ShardFile
from genmodels.data.store import Store
from genmodels.files import sync

POLL = 0.02  # seconds between looks at a lock; a blocking one could not be given up


class Held:
    """A shard that stays in the cache until this is closed or forgotten."""

    def __init__(self, path: Path, lock: int):
        self.path, self._lock = path, lock

    def close(self) -> None:
        """Lets the shard be removed."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    __del__ = close


@dataclass(frozen=True)
class ShardCache:
    """A folder for at most `limit_bytes` of shards; the least recently used go first, those in use never.

    Only shards that are needed at once go over the limit, where nothing else is left to remove; that warns.
    """

    folder: Path
    limit_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {**asdict(self), "folder": str(self.folder)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ShardCache:
        """Inverse of `to_json`."""
        return cls(Path(values["folder"]), values["limit_bytes"])

    def hold(self, store: Store, shard: ShardFile) -> Held:
        """A shard, fetched where it is missing; another process that fetches it is waited for.

        DamagedData names an object that is not what `prepare` put there; OSError a store that is out of reach, or
        a full disk.
        """
        path = self._path(shard)
        while True:
            lock = self._wait(store, path, fcntl.LOCK_SH)
            if self._touch(shard):
                return Held(path, lock)
            os.close(lock)
            lock = self._wait(store, path, fcntl.LOCK_EX)
            try:
                if not self._touch(shard):
                    self._fetch(store, shard)
            finally:
                os.close(lock)

    def prefetch(self, store: Store, shard: ShardFile) -> bool:
        """Fetches a shard that is missing, within the limit; False where there is no room now."""
        if self._touch(shard):
            return True
        lock = self._try(self._path(shard), fcntl.LOCK_EX)
        if lock is None:  # another one is at it
            return True
        try:
            return self._touch(shard) or self._fetch(store, shard, must=False)
        finally:
            os.close(lock)

    def _path(self, shard: ShardFile) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _touch(self, shard: ShardFile) -> bool:
        """Whether the shard is there; as the one used last."""
        try:
            os.utime(self._path(shard))
            return self._path(shard).stat().st_size == shard.bytes
        except FileNotFoundError:
            return False

    def _fetch(self, store: Store, shard: ShardFile, must: bool = True) -> bool:
        """Fetches a shard whose lock is held alone."""
        path = self._path(shard)
        part = path.with_suffix(".part")
        try:
            if not self._reserve(part, shard.bytes, must):
                return False
            store.fetch(shard, part)
            sync(part)
            with self._alone():  # or the other process that adds up sizes would miss it
                os.replace(part, path)
            sync(self.folder)
            return True
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, part: Path, num_bytes: int, must: bool) -> bool:
        """Makes `part` of `num_bytes`, after others made room for it; False where that would go over the limit."""
        with self._alone():
            part.unlink(missing_ok=True)  # by a killed process
            excess = self._remove(num_bytes)
            if excess > 0 and not must:
                return False
            try:
                with part.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, num_bytes)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                free = shutil.disk_usage(self.folder).free
                text = f"{self.folder}: no room for a shard, needs {num_bytes:,} bytes, {free:,} are free"
                raise OSError(error.errno, text) from error
        if excess > 0:
            warnings.warn(
                f"{self.folder}: {excess:,} bytes over the limit of {self.limit_bytes:,}, all of them in use",
                stacklevel=2,
            )
        return True

    def _remove(self, num_bytes: int) -> int:
        """Removes what nobody uses until `num_bytes` fit, and what killed processes left; the bytes that are too many.

        What the disk has free is a limit, too.
        """
        files = sorted(self._files())
        excess = sum(size for *_, size in files) + num_bytes - self.limit_bytes
        excess = max(excess, num_bytes - shutil.disk_usage(self.folder).free)
        for kind, _, path, size in files:
            if (kind == ".part" or excess > 0) and self._remove_unused(path):
                excess -= size
        return excess

    def _files(self) -> Iterator[tuple[str, int, Path, int]]:
        """Kind, time of last use, path and bytes of every file that counts; .part before .tar, then the oldest."""
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # the .part of a fetch that failed, just now
                if path.suffix in (".tar", ".part"):
                    status = path.stat()
                    yield path.suffix, status.st_mtime_ns, path, status.st_size

    def _remove_unused(self, path: Path) -> bool:
        lock = self._try(path, fcntl.LOCK_EX)
        if lock is None:
            return False
        try:
            path.unlink(missing_ok=True)
            if not path.with_suffix(".tar").exists():
                path.with_suffix(".lock").unlink()
        finally:
            os.close(lock)
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "space.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _wait(self, store: Store, path: Path, kind: int) -> int:
        while (lock := self._try(path, kind)) is None:
            if store.closed.wait(POLL):
                raise OSError(0, f"{path}: given up")
        return lock

    def _try(self, path: Path, kind: int) -> int | None:
        """The descriptor that holds a shard's lock; None while another one is in the way."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = path.with_suffix(".lock")
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), file.stat()):
                return lock
        except (BlockingIOError, FileNotFoundError):  # or removed with its shard, just now
            pass
        os.close(lock)
        return None
