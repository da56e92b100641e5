"""Files below one folder, on this machine or behind any fsspec URL (s3://bucket/photos), by relative path."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from genmodels.data.remote import filesystem, is_url, retried

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER = 1 << 20  # bytes; what one request fetches of a file that is read in order


class Tree(Protocol):
    """A folder that is read and never written. Picklable: worker processes read."""

    name: str  # as messages show it

    def scan(self) -> Iterator[tuple[str, str | None]]:
        """Every file's relative path, with the reason to refuse it (None: none), sorted; hidden ones are skipped."""

    def read(self, file: str, start: int = 0, length: int | None = None) -> bytes:
        """A file's bytes, or those of a range inside it; OSError where it cannot be read."""

    def size(self, file: str) -> int:
        """How many bytes the file has."""

    def stamp(self, file: str) -> bytes:
        """What changes when the file does; reads no content."""


def local_path(source: str, root: Path) -> Path:
    """`source` on this machine; relative folders start at `root`, and ~ is the home folder."""
    try:
        return root / Path(source).expanduser()
    except RuntimeError:  # of a user whom this machine does not know: there is no such path
        return root / source


def is_file(source: str, root: Path) -> bool:
    """Whether `source` names one file, and no folder."""
    if not is_url(source):
        return local_path(source, root).is_file()
    fs, path = filesystem(source)
    try:
        return bool(retried(lambda: fs.info(path), source)["type"] == "file")
    except FileNotFoundError:
        return False


def open_tree(source: str, root: Path, only: tuple[str, ...] | None = None) -> Tree:
    """The folder or URL `source`, or `only` these files of it; relative folders start at `root`."""
    return RemoteTree(source, only) if is_url(source) else LocalTree(local_path(source, root), only)


class LocalTree:
    """A folder of this machine, or `only` these files of it. Links that lead out of the folder are refused."""

    def __init__(self, folder: Path, only: tuple[str, ...] | None = None):
        self.folder, self.name, self._only = folder.resolve(), str(folder), only

    def scan(self) -> Iterator[tuple[str, str | None]]:
        """Files and links to folders; a sub-folder that cannot be read is refused as a whole."""
        if self._only is not None:  # named one by one: links are meant
            yield from ((file, None) for file in sorted(self._only) if (self.folder / file).is_file())
            return
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

    def read(self, file: str, start: int = 0, length: int | None = None) -> bytes:
        """The file's bytes, or those of a range."""
        with (self.folder / file).open("rb", buffering=0 if length is not None else -1) as opened:
            opened.seek(start)
            return opened.read(-1 if length is None else length)

    def size(self, file: str) -> int:
        """How many bytes the file has."""
        return (self.folder / file).stat().st_size

    def stamp(self, file: str) -> bytes:
        """Size and time of change, of a link itself where it leads out."""
        path = self.folder / file
        inside = path.is_file() and (self._only is not None or not self._refusal(file))
        status = path.stat() if inside else path.lstat()
        return b"%d\0%d" % (status.st_size, status.st_mtime_ns)


class RemoteTree:
    """What an fsspec URL holds, or `only` these files of it. Fetched when read; an outage of a minute is waited for."""

    def __init__(self, url: str, only: tuple[str, ...] | None = None):
        self.name, self._only = url.rstrip("/"), only
        self._files: dict[str, dict[str, Any]] | None = None

    def scan(self) -> Iterator[tuple[str, str | None]]:
        """Every object below the URL."""
        for file in self._listing():
            yield file, None

    def _listing(self) -> dict[str, dict[str, Any]]:
        if self._files is None and self._only is not None:
            abouts = {file: self._about(file) for file in sorted(self._only)}
            self._files = {file: about for file, about in abouts.items() if about}
        if self._files is None:
            fs, top = filesystem(self.name)
            found = retried(lambda: fs.find(top, detail=True), self.name)
            names = {path[len(top) :].lstrip("/"): about for path, about in found.items()}
            hidden = (name for name in names if any(part.startswith(".") for part in name.split("/")))
            for name in set(hidden) | {""} & names.keys():
                del names[name]
            self._files = dict(sorted(names.items()))
        return self._files

    def _about(self, file: str) -> dict[str, Any]:
        """What the store says of one object; nothing where there is none."""
        fs, top = filesystem(self.name)
        try:
            return dict(retried(lambda: fs.info(f"{top}/{file}"), f"{self.name}/{file}"))
        except FileNotFoundError:
            return {}

    def read(self, file: str, start: int = 0, length: int | None = None) -> bytes:
        """The object's bytes, or those of a range."""
        fs, top = filesystem(self.name)
        if length is None:
            return bytes(retried(lambda: fs.cat_file(f"{top}/{file}", start=start or None), f"{self.name}/{file}"))
        if length == 0:  # no range of HTTP is empty
            return b""
        end = start + length
        data = bytes(retried(lambda: fs.cat_file(f"{top}/{file}", start=start, end=end), f"{self.name}/{file}"))
        if len(data) > length:
            raise OSError(0, "the server sends no byte ranges")
        return data

    def size(self, file: str) -> int:
        """How many bytes the object has."""
        size = (self._about(file) if self._files is None else self._files[file]).get("size")
        if size is None:
            raise ValueError(f"{self.name}/{file}: the server tells no size")
        return int(size)

    def stamp(self, file: str) -> bytes:
        """Size and the store's own mark of the content."""
        about = self._listing()[file]
        mark = next((about[key] for key in ("ETag", "etag", "md5", "mtime", "LastModified") if key in about), "")
        return f"{about.get('size')}\0{mark}".encode()

    def __getstate__(self) -> dict[str, object]:
        return {"name": self.name, "_only": self._only, "_files": None}  # a worker process lists nothing


class TreeFile(io.RawIOBase):
    """A file of a tree as Python's file objects are, for readers that seek. Fetches what is read, and no more."""

    def __init__(self, tree: Tree, file: str):
        self._tree, self._file, self._position, self._size = tree, file, 0, tree.size(file)

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a place from the start, from here, or from the end."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Reads at most so many bytes as the buffer takes."""
        view = memoryview(buffer).cast("B")
        length = min(len(view), self._size - self._position)
        if length <= 0:
            return 0
        data = self._tree.read(self._file, self._position, length)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_file(tree: Tree, file: str) -> io.BufferedReader:
    """A file of the tree, opened for reading in any order; best in its own."""
    return io.BufferedReader(TreeFile(tree, file), BUFFER)
