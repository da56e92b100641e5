"""The members of a tar by its headers alone, of a file that may be hostile: nothing is extracted."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from typing import Protocol

HEADER = 512  # bytes; a tar is made of such blocks
MAX_HEADERS = 1 << 20  # bytes of a member's long name and its like


class Seekable(Protocol):
    """What is needed of a file."""

    def read(self, size: int = -1, /) -> bytes:
        """At most so many bytes from here."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Moves to a place."""

    def tell(self) -> int:
        """The place."""


class _Headers(io.RawIOBase):
    """A file that refuses what no header needs: a header may announce any size, and tarfile would read it."""

    def __init__(self, file: Seekable):
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADERS:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def tar_members(file: Seekable, where: str) -> Iterator[tarfile.TarInfo]:
    """Every member in order, folders and links too; the file may be read and moved in between.

    ValueError of one line where the file is no tar, is damaged, or ends before its end mark (a block of zeros): what
    a truncated tar has lost cannot be named.
    """
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
            last = -1
            while member := tar.next():
                if member.offset_data <= last or member.size < 0:
                    raise tarfile.ReadError("a member lies inside another")
                last = member.offset_data
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                yield member
            file.seek(tar.offset)
            mark = file.read(HEADER)
    except Exception as error:  # hostile headers raise whatever they like
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{where}: no tar, or damaged ({what})") from None
    if mark != bytes(HEADER):
        raise ValueError(f"{where}: truncated or damaged at byte {tar.offset:,}: no member and no end mark there")
