"""Unpacked copies of compressed files: made once for all processes of this machine, then read by offset."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Spool:
    """Temporary files by name, in a folder that ends with the object that made it; a killed process leaves it.

    Samples are read in the order of a hash, so what is compressed in long runs would be decompressed once a sample.
    Pickled, it is the same folder in another process; on another machine its namesake, which stays there.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._lock: int | None = None  # held by every process that reads; it ends with the process, however that ends

    def read(self, name: str, write: Callable[[BinaryIO], None], start: int, length: int) -> bytes:
        """A range of the file called `name` (any text), which `write` fills where it is not there yet."""
        path = self._made() / hashlib.sha256(os.fsencode(name)).hexdigest()
        if not path.exists():
            self._write(path, write, name)
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(length)

    def _made(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="genmodels-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)  # on another machine of a cluster it is not there yet
        if self._lock is None:
            self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            weakref.finalize(self, os.close, self._lock)
        return self._folder

    def _write(self, path: Path, write: Callable[[BinaryIO], None], name: str) -> None:
        """Whole or not at all; another process may be doing the same."""
        descriptor, partial = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
            os.replace(partial, path)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # No reject of single images: all that follow would fail alike.
            what = f"no room to unpack {name!r} ({error.strerror}); set TMPDIR to a larger disk"
            raise ValueError(f"{path.parent.parent}: {what}") from error
        finally:
            Path(partial).unlink(missing_ok=True)

    def __getstate__(self) -> dict[str, object]:
        return {"_folder": self._made(), "_lock": None}
