"""Reading and verifying a prepared data set: images of one split at one size, by number, and what is known of them."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from genmodels.data.cache import Held, ShardCache
from genmodels.data.images import Pixels
from genmodels.data.order import WINDOW
from genmodels.data.shard_index import read_index
from genmodels.data.shards import (
    MEMBER_NAME,
    SAVE_AS,
    DamagedData,
    Manifest,
    ShardFile,
    check_digest,
    map_bytes,
    map_file,
    open_shards,
    shard_name,
)
from genmodels.data.store import Store

ALIGNED = 0.75  # share of the larger side's names at which two sets are taken for pairs; some files may be damaged


def verify(folder: Path, full: bool = True) -> Manifest:
    """Checks a data set before it is trusted; DamagedData names the first file that is wrong.

    Sizes always; with `full` every byte (sha256), every tar member's name and type, and every index. Shards of a
    store are fetched for that, one at a time.
    """
    manifest = open_shards(folder)
    if not full:
        return manifest
    for file in manifest.tables if manifest.store else manifest.files:
        map_file(manifest, file)
    for shard in manifest.shards:
        with _at_hand(manifest, shard) as path:
            _check_members(path, shard.num_samples)
    for split in ("train", "test"):
        for size in manifest.spec.sizes:
            read_index(manifest, split, size)
    return manifest


@contextmanager
def _at_hand(manifest: Manifest, shard: ShardFile) -> Iterator[Path]:
    """A shard as a local file; that of a store is fetched, which checks it."""
    if not manifest.store:
        yield manifest.folder / shard.name
        return
    with TemporaryDirectory() as folder:
        Store(manifest.store).fetch(shard, Path(folder) / shard.name)
        yield Path(folder) / shard.name


def _check_members(path: Path, num_samples: int) -> None:
    """Only regular files under plain names, none twice. Nothing is unpacked."""
    names = set()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg():
                    raise DamagedData(f"{path}: member {member.name!r} is no regular file")
                if not MEMBER_NAME.fullmatch(member.name):
                    raise DamagedData(f"{path}: member name {member.name!r} is not allowed")
                if member.name in names:
                    raise DamagedData(f"{path}: member {member.name!r} comes twice")
                names.add(member.name)
    except tarfile.TarError as error:
        raise DamagedData(f"{path}: {error}") from None
    if len(names) != 2 * num_samples:
        raise DamagedData(f"{path}: {len(names)} members, should be {2 * num_samples}")


class Mapped(NamedTuple):
    """A shard's bytes; those of a store stay in the cache as long as this exists."""

    bytes: Pixels
    held: Held | None


class ShardReader:
    """Images of one split at one size, by number; and their labels, in the same order.

    The order is that of the shards. `domain` leaves out all other domains. Shards of a store come through `cache`,
    of which at most WINDOW are held. Thread-safe. Every file is checked by its sha256 when it is first needed:
    DamagedData names what was altered, and a data set that took the place of this one (of `digest`, if given).
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        size: int,
        domain: str | None = None,
        cache: ShardCache | None = None,
        digest: str | None = None,
    ):
        self.manifest = open_shards(folder)
        check_digest(self.manifest, digest or self.manifest.spec.digest)
        self.spec, self.size = self.manifest.spec, size
        _choose("split", split, ("train", "test"))
        _choose("image size", size, self.spec.sizes)
        if domain is not None:
            _choose("domain", domain, self.spec.domains)
        if self.manifest.store and cache is None:
            raise ValueError(f"{folder}: its shards lie in {self.manifest.store} and are read through a cache")
        self.store = Store(self.manifest.store) if self.manifest.store else None
        self.cache = cache
        index = read_index(self.manifest, split, size)
        keep = pa.array(np.ones(len(index), bool)) if domain is None else pc.equal(index["domain"], domain)
        self._table = index.filter(keep)
        self._several_domains = domain is None and len(self.spec.domains) > 1
        self.keys: list[str] = self._table["key"].to_pylist()
        self.num = len(self.keys)
        shards, counts = np.unique(self._column("shard"), return_counts=True)
        self.num_per_shard: tuple[int, ...] = tuple(counts.tolist())
        by_name = {shard.name: shard for shard in self.manifest.shards}
        self.shards = tuple(by_name[shard_name(split, size, shard)] for shard in shards.tolist())
        self._files = dict(zip(shards.tolist(), self.shards, strict=True))
        self._shard, self._offset, self._length = (self._column(name) for name in ("shard", "offset", "length"))
        self._maps: dict[int, Mapped] = {}  # the one used last comes last
        self._lock = threading.Lock()

    def some(self, most: int) -> NDArray[np.int64]:
        """Numbers of `most` images, or of all: the first ones; of several domains each its share."""
        num = min(self.num, most)
        if not self._several_domains:
            return np.arange(num)  # in order of a hash, so a mixture
        return np.arange(num) * self.num // max(1, num)  # one domain lies after the other

    def close(self) -> None:
        """Gives up waiting for a store, in every thread; nothing can be read afterwards that is not held."""
        if self.store:
            self.store.close()

    def read(self, ids: NDArray[np.int64]) -> Pixels:
        """The images numbered `ids`, uint8 [B, H, W, C]; every id in [0, num)."""
        ids = np.asarray(ids, np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self.num):
            raise ValueError(f"image number {ids.min()} or {ids.max()} is not in [0, {self.num})")
        return self._read_raw(ids) if self.manifest.encoding == "raw" else self._read_encoded(ids)

    def _read_raw(self, ids: NDArray[np.int64]) -> Pixels:
        shape = (self.size, self.size, self.spec.channels)
        num_bytes = shape[0] * shape[1] * shape[2]
        images = np.empty((len(ids), num_bytes), np.uint8)
        starts = self._offset[ids].tolist()
        for shard, rows in self._by_shard(ids):
            mapped = self._map(shard)  # held while its bytes are read
            pixels = mapped.bytes
            for row in rows:
                images[row] = pixels[starts[row] : starts[row] + num_bytes]
        return images.reshape(len(ids), *shape)

    def _read_encoded(self, ids: NDArray[np.int64]) -> Pixels:
        images = np.empty((len(ids), self.size, self.size, self.spec.channels), np.uint8)
        mode = "RGB" if self.spec.channels == 3 else "L"
        formats = (SAVE_AS[self.manifest.encoding]["format"],)
        starts, lengths = self._offset[ids].tolist(), self._length[ids].tolist()
        for shard, rows in self._by_shard(ids):
            mapped = self._map(shard)
            for row in rows:
                try:
                    payload = mapped.bytes[starts[row] : starts[row] + lengths[row]].tobytes()
                    image = Image.open(io.BytesIO(payload), formats=formats)
                    if image.size != (self.size, self.size):
                        raise ValueError(f"its size is {image.size}")
                    images[row] = np.asarray(image.convert(mode)).reshape(images.shape[1:])
                except (OSError, ValueError, SyntaxError) as error:
                    where = self.manifest.folder / self._files[shard].name
                    raise DamagedData(f"{where}: image {self.keys[ids[row]]!r}: {error}") from None
        return images

    def _by_shard(self, ids: NDArray[np.int64]) -> Iterator[tuple[int, list[int]]]:
        """The shards of a batch, each with the batch's rows that lie in it: no more than one need be held at once."""
        rows_of: dict[int, list[int]] = {}
        for row, shard in enumerate(self._shard[ids].tolist()):
            rows_of.setdefault(shard, []).append(row)
        yield from rows_of.items()

    def _map(self, shard: int) -> Mapped:
        """The shard's bytes, mapped; opened when first needed, and fetched where it lies in a store."""
        if not self.store and (mapped := self._maps.get(shard)):
            return mapped
        with self._lock:
            if mapped := self._maps.pop(shard, None):
                self._maps[shard] = mapped
                return mapped
            while self.store and len(self._maps) >= WINDOW:
                del self._maps[next(iter(self._maps))]  # an unlinked file takes room as long as it is mapped
        mapped = self._open(self._files[shard])
        with self._lock:
            return self._maps.setdefault(shard, mapped)

    def _open(self, shard: ShardFile) -> Mapped:
        if not self.store or not self.cache:
            return Mapped(map_file(self.manifest, shard), None)
        held = self.cache.hold(self.store, shard)  # checked when it was fetched
        return Mapped(map_bytes(held.path, shard.bytes), held)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class numbers, int64 [N]; only where the data set has classes."""
        assert self.spec.classes
        return self._column("label")

    @property
    def groups(self) -> NDArray[np.int64]:
        """Numbers of the groups, int64 [N], the same in every split; only where the data set has groups."""
        assert self.spec.group
        return self._column("group")

    @property
    def attributes(self) -> NDArray[np.float32]:
        """0 or 1, float32 [N, A]."""
        return self._nested("attributes", (self.num, len(self.spec.attributes)))

    @property
    def parts(self) -> NDArray[np.float32]:
        """Boxes (left, top, right, bottom) as fractions of the image's sides, float32 [N, P, 4]."""
        return self._nested("parts", (self.num, self.spec.num_parts, 4))

    @property
    def captions(self) -> list[list[str]]:
        """All captions of each image."""
        return self._table["captions"].to_pylist()

    @property
    def files(self) -> list[str]:
        """Each image's path in the source."""
        return self._table["file"].to_pylist()

    def about(self, ids: NDArray[np.int64]) -> list[dict[str, Any]]:
        """What the manifest says of the images numbered `ids`: its columns by name."""
        return self._table.take(pa.array(ids)).to_pylist()

    def _column(self, name: str) -> NDArray[Any]:
        return self._table[name].to_numpy().astype(np.int64)

    def _nested(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        flat = self._table[name].combine_chunks()
        while isinstance(flat, pa.ListArray | pa.FixedSizeListArray | pa.ChunkedArray):
            flat = flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat.flatten()
        return flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(shape)


def paired_ids(reader_a: ShardReader, reader_b: ShardReader) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers [P] and [P] of the images that both readers have under one name, below their domain's folder.

    None where fewer than ALIGNED of the larger side have a partner: unrelated images may bear the same numbers.
    """
    files_a, files_b = reader_a.files, reader_b.files
    if not files_a or not files_b:
        return np.array([], np.int64), np.array([], np.int64)
    around = os.path.commonpath([*files_a, *files_b])  # the folder that holds those of the domains

    def by_name(files: list[str]) -> dict[str, int]:
        paths = (Path(file[len(around) :].lstrip("/")) for file in files)
        return {str(Path(*path.parts[1:]).with_suffix("")): number for number, path in enumerate(paths)}

    a, b = by_name(files_a), by_name(files_b)
    names = sorted(a.keys() & b.keys())
    if len(names) < ALIGNED * max(len(a), len(b)):
        names = []
    return np.array([a[name] for name in names], np.int64), np.array([b[name] for name in names], np.int64)


def _choose(what: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{what} {value!r} is not in the data set; choices: {', '.join(map(str, choices)) or 'none'}")
