"""Files below one folder, on this machine or behind any fsspec URL (s3://bucket/photos), by relative path."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from genmodels.data.remote import filesystem, retried

URL = re.compile(r"[a-z][a-z0-9+.-]*://")


class Tree(Protocol):
    """A folder that is read and never written. Picklable: worker processes read."""

    name: str  # as messages show it

    def scan(self) -> Iterator[tuple[str, str | None]]:
        """Every file's relative path, with the reason to refuse it (None: none), sorted; hidden ones are skipped."""

    def read(self, file: str) -> bytes:
        """A file's bytes; OSError where it cannot be read."""

    def stamp(self, file: str) -> bytes:
        """What changes when the file does; reads no content."""


def is_url(source: str) -> bool:
    """Whether `source` names a place that fsspec knows, not a path."""
    return bool(URL.match(source))


def open_tree(source: str, root: Path) -> Tree:
    """The folder or URL `source`; relative folders start at `root`."""
    return RemoteTree(source) if is_url(source) else LocalTree(root / Path(source).expanduser())


class LocalTree:
    """A folder of this machine. Links that lead out of it are refused."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder.resolve(), str(folder)

    def scan(self) -> Iterator[tuple[str, str | None]]:
        """Files and links to folders; a sub-folder that cannot be read is refused as a whole."""
        unreadable: list[tuple[str, str | None]] = []

        def note(error: OSError) -> None:
            inside = os.path.relpath(error.filename, self.folder)
            unreadable.append((inside, f"folder cannot be read ({error.strerror})"))

        for current, subfolders, files in os.walk(self.folder, onerror=note):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            links = [name for name in subfolders if os.path.islink(os.path.join(current, name))]
            inside = os.path.relpath(current, self.folder)
            for name in sorted(links + [name for name in files if not name.startswith(".")]):
                file = name if inside == "." else f"{inside}/{name}"
                yield file, self._refusal(file)
        yield from unreadable

    def _refusal(self, file: str) -> str | None:
        path = os.path.join(self.folder, file)
        if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(self.folder):
            return "link out of the folder"
        if os.path.isdir(path):
            return "link to a folder"
        return None if os.path.isfile(path) else "not a regular file"

    def read(self, file: str) -> bytes:
        """The file's bytes."""
        return (self.folder / file).read_bytes()

    def stamp(self, file: str) -> bytes:
        """Size and time of change, of a link itself where it leads out."""
        path = self.folder / file
        status = path.stat() if path.is_file() and not self._refusal(file) else path.lstat()
        return b"%d\0%d" % (status.st_size, status.st_mtime_ns)


class RemoteTree:
    """What an fsspec URL holds. A file is fetched when it is read; an outage of a minute is waited for."""

    def __init__(self, url: str):
        self.name = url.rstrip("/")
        self._files: dict[str, dict[str, Any]] | None = None

    def scan(self) -> Iterator[tuple[str, str | None]]:
        """Every object below the URL."""
        for file in self._listing():
            yield file, None

    def _listing(self) -> dict[str, dict[str, Any]]:
        if self._files is None:
            fs, top = filesystem(self.name)
            found = retried(lambda: fs.find(top, detail=True), self.name)
            names = {path[len(top) :].lstrip("/"): about for path, about in found.items()}
            hidden = (name for name in names if any(part.startswith(".") for part in name.split("/")))
            for name in set(hidden) | {""} & names.keys():
                del names[name]
            self._files = dict(sorted(names.items()))
        return self._files

    def read(self, file: str) -> bytes:
        """The object's bytes."""
        fs, top = filesystem(self.name)
        return retried(lambda: fs.cat_file(f"{top}/{file}"), f"{self.name}/{file}")

    def stamp(self, file: str) -> bytes:
        """Size and the store's own mark of the content."""
        about = self._listing()[file]
        mark = next((about[key] for key in ("ETag", "etag", "md5", "mtime", "LastModified") if key in about), "")
        return f"{about.get('size')}\0{mark}".encode()

    def __getstate__(self) -> dict[str, object]:
        return {"name": self.name, "_files": None}  # a worker process lists nothing
