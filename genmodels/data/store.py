"""A data set's shards behind an fsspec URL (s3://bucket/prefix).

An object is named by its file and the start of its sha256, so whatever has the name and the size is the file: a
repeated upload leaves it out, a new state of the data set overwrites nothing that a training still reads. dataset.json
is put last, and by it the store changes from one whole data set to the next.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from genmodels.data.remote import FINAL, filesystem, retried
from genmodels.data.shards import DATASET_FILE, DamagedData, Manifest, ShardFile, TableFile, read_manifest
from genmodels.data.staging import staging
from genmodels.files import write_json

T = TypeVar("T")

BLOCK = 16 * 2**20  # bytes fetched at once: what an outage costs, and what a thread holds in memory


def object_name(file: ShardFile | TableFile) -> str:
    """The name of a file in the store."""
    path = Path(file.name)
    return f"{path.stem}-{file.sha256[:16]}{path.suffix}"


class Store:
    """A URL's objects. Every call waits for the store through an outage, until `close` ends that."""

    def __init__(self, url: str):
        self.url, self.closed = url.rstrip("/"), threading.Event()

    def close(self) -> None:
        """Lets no call wait any longer; for other threads."""
        self.closed.set()

    def _call(self, action: Callable[[], T], what: str) -> T:
        """ValueError where the store answers that it will not, so that nobody waits for an end of that."""
        try:
            return retried(action, what, self.closed)
        except FileNotFoundError:
            raise
        except FINAL as error:
            raise ValueError(f"{what}: {' '.join(str(error).split())}") from None

    def sizes(self) -> dict[str, int]:
        """Bytes of every object, by name; ValueError where the bucket does not exist."""
        fs, top = filesystem(self.url)
        try:
            found = self._call(lambda: fs.find(top, detail=True), self.url)
        except FileNotFoundError as error:
            raise ValueError(f"{self.url}: {error}") from None
        return {path[len(top) :].lstrip("/"): about["size"] for path, about in found.items()}

    def missing(self, manifest: Manifest) -> list[str]:
        """What the store does not hold, in the right size, of the objects of a data set."""
        sizes = self.sizes()
        names = {object_name(file): file.bytes for file in manifest.files}
        return [name for name, num_bytes in names.items() if sizes.get(name) != num_bytes]

    def put(self, path: Path, name: str) -> None:
        """Uploads a file."""
        fs, top = filesystem(self.url)
        try:
            self._call(lambda: fs.put_file(str(path), f"{top}/{name}"), f"{self.url}/{name}")
        except FileNotFoundError as error:
            raise ValueError(f"{self.url}: {error}") from None

    def description(self) -> bytes | None:
        """The content of dataset.json; None where the store holds no whole data set."""
        fs, top = filesystem(self.url)
        try:
            return self._call(lambda: fs.cat_file(f"{top}/{DATASET_FILE}"), f"{self.url}/{DATASET_FILE}")
        except FileNotFoundError:
            return None

    def fetch(self, file: ShardFile | TableFile, path: Path) -> None:
        """Downloads a file to `path`; a wrong content is fetched once more, then DamagedData names the object."""
        with path.open("r+b" if path.exists() else "wb") as out:  # keeps the room that was reserved
            fault = self._fetch(file, out) and self._fetch(file, out)
        if fault:
            raise DamagedData(f"{self.url}/{object_name(file)}: {fault}")

    def _fetch(self, file: ShardFile | TableFile, out: BinaryIO) -> str | None:
        """What is wrong with the object, if anything."""
        fs, top = filesystem(self.url)
        name, digest = object_name(file), hashlib.sha256()
        what, path = f"{self.url}/{name}", f"{top}/{name}"
        out.seek(0)
        try:
            for start in range(0, file.bytes, BLOCK):
                end = min(start + BLOCK, file.bytes)
                # One byte more than there should be shows an object that is too long, without a request for its size.
                block = self._call(partial(fs.cat_file, path, start=start, end=end + (end == file.bytes)), what)
                if len(block) != end - start:
                    actual = f"{start + len(block)}" if len(block) < end - start else f"more than {file.bytes}"
                    return f"{actual} bytes, should be {file.bytes}"
                digest.update(block)
                out.write(block)
        except FileNotFoundError:
            return "missing"
        return None if digest.hexdigest() == file.sha256 else "sha256 differs, the content was altered"


class Upload:
    """Takes a data set to a store while it is being made: its shards one by one, then all that describes them."""

    def __init__(self, url: str):
        self.store = Store(url)
        self._sizes = self.store.sizes()  # what an interrupted upload got done

    def take(self, path: Path, shard: ShardFile) -> None:
        """Moves a finished shard to the store."""
        self._put(path, shard)
        path.unlink()

    def _put(self, path: Path, file: ShardFile | TableFile) -> None:
        if self._sizes.get(object_name(file)) != file.bytes:
            self.store.put(path, object_name(file))

    def finish(self, manifest: Manifest) -> None:
        """Puts the tables and, when the store holds everything, dataset.json."""
        for table in manifest.tables:
            self._put(manifest.folder / table.name, table)
        if missing := self.store.missing(manifest):
            raise ValueError(f"{self.store.url}: {missing[0]} is gone since it was uploaded; run the command again")
        self.store.put(manifest.folder / DATASET_FILE, DATASET_FILE)


def stored_fingerprint(url: str) -> str | None:
    """The fingerprint of the data set that a store holds; None where it holds none that can be read."""
    try:
        return json.loads(Store(url).description() or "null")["fingerprint"]
    except (TypeError, KeyError, json.JSONDecodeError):
        return None


def adopt(url: str, out: Path) -> None:
    """Makes the folder `out` of what a store holds: dataset.json and the tables; the shards stay where they are.

    ValueError where the store holds no data set; DamagedData names what is wrong with it.
    """
    store = Store(url)
    description = store.description()
    if description is None:
        raise ValueError(f"{store.url} holds no data set ({DATASET_FILE} is missing); prepare it first")
    with staging(out) as folder:
        (folder / DATASET_FILE).write_bytes(description)
        manifest = replace(read_manifest(folder), store=store.url)  # it may have been copied since
        for table in manifest.tables:
            store.fetch(table, folder / table.name)
        write_json(folder / DATASET_FILE, manifest.to_json())
