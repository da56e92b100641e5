"""Reading and verifying a prepared data set: images of one split at one size, by number, and what is known of them."""

from __future__ import annotations

import io
import mmap
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from genmodels.data.images import Pixels
from genmodels.data.shards import (
    DATASET_FILE,
    INDEX_SCHEMA,
    MANIFEST_FILE,
    MEMBER_NAME,
    SAVE_AS,
    DamagedData,
    Manifest,
    index_name,
    open_shards,
    shard_name,
)
from genmodels.files import sha256_file


def verify(folder: Path, full: bool = True) -> Manifest:
    """Checks a data set before it is trusted; DamagedData names the first file that is wrong.

    Sizes always; with `full` every byte (sha256), every tar member's name and type, and every index.
    """
    manifest = open_shards(folder)
    if not full:
        return manifest
    for file in manifest.files:
        if sha256_file(manifest.folder / file.name) != file.sha256:
            raise DamagedData(f"{manifest.folder / file.name}: sha256 differs, the content was altered")
    for shard in manifest.shards:
        _check_members(manifest.folder / shard.name, shard.num_samples)
    for split in ("train", "test"):
        for size in manifest.spec.sizes:
            _read_index(manifest, split, size)
    return manifest


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


class ShardReader:
    """Images of one split at one size, by number; and their labels, in the same order.

    The order is that of the shards. `domain` leaves out all other domains. Thread-safe.
    """

    def __init__(self, folder: Path, split: str, size: int, domain: str | None = None):
        self.manifest = open_shards(folder)
        self.spec, self.size = self.manifest.spec, size
        _choose("split", split, ("train", "test"))
        _choose("image size", size, self.spec.sizes)
        if domain is not None:
            _choose("domain", domain, self.spec.domains)
        index = _read_index(self.manifest, split, size)
        keep = pa.array(np.ones(len(index), bool)) if domain is None else pc.equal(index["domain"], domain)
        self._table = index.filter(keep)
        self.keys: list[str] = self._table["key"].to_pylist()
        self.num = len(self.keys)
        shards, counts = np.unique(self._column("shard"), return_counts=True)
        self.num_per_shard: tuple[int, ...] = tuple(counts.tolist())
        paths = [Path(folder) / shard_name(split, size, shard) for shard in shards.tolist()]
        self._paths = {shard: path for shard, path in zip(shards.tolist(), paths, strict=True)}
        self._shard, self._offset, self._length = (self._column(name) for name in ("shard", "offset", "length"))
        self._maps: dict[int, Pixels] = {}

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
        where = zip(self._shard[ids].tolist(), self._offset[ids].tolist(), strict=True)
        for row, (shard, start) in enumerate(where):
            images[row] = self._map(shard)[start : start + num_bytes]
        return images.reshape(len(ids), *shape)

    def _read_encoded(self, ids: NDArray[np.int64]) -> Pixels:
        images = np.empty((len(ids), self.size, self.size, self.spec.channels), np.uint8)
        mode = "RGB" if self.spec.channels == 3 else "L"
        formats = (SAVE_AS[self.manifest.encoding]["format"],)
        where = zip(self._shard[ids].tolist(), self._offset[ids].tolist(), self._length[ids].tolist(), strict=True)
        for row, (shard, start, length) in enumerate(where):
            try:
                image = Image.open(io.BytesIO(self._map(shard)[start : start + length].tobytes()), formats=formats)
                if image.size != (self.size, self.size):
                    raise ValueError(f"its size is {image.size}")
                images[row] = np.asarray(image.convert(mode)).reshape(images.shape[1:])
            except (OSError, ValueError, SyntaxError) as error:
                raise DamagedData(f"{self._paths[shard]}: image {self.keys[ids[row]]!r}: {error}") from None
        return images

    def _map(self, shard: int) -> Pixels:
        """The shard's bytes, mapped; opened when first needed."""
        if shard not in self._maps:
            with self._paths[shard].open("rb") as file:
                self._maps[shard] = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        return self._maps[shard]

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
    """Numbers [P] and [P] of the images that both readers have under one name, below their domain's folder."""

    def by_name(reader: ShardReader) -> dict[str, int]:
        return {str(Path(*Path(file).parts[1:]).with_suffix("")): number for number, file in enumerate(reader.files)}

    a, b = by_name(reader_a), by_name(reader_b)
    names = sorted(a.keys() & b.keys())
    return np.array([a[name] for name in names], np.int64), np.array([b[name] for name in names], np.int64)


def _read_index(manifest: Manifest, split: str, size: int) -> pa.Table:
    """One split's samples, in order: the index of `size` joined to the manifest. DamagedData if they disagree."""
    path = manifest.folder / index_name(size)
    keep = [("split", "=", split)]
    try:
        index = pq.read_table(path, schema=INDEX_SCHEMA, filters=keep)
        about = pq.read_table(manifest.folder / MANIFEST_FILE, filters=keep)
    except (pa.ArrowException, OSError) as error:
        raise DamagedData(f"{path} or {MANIFEST_FILE}: {error}") from None
    expected = [shard for shard in manifest.shards if (shard.split, shard.size) == (split, size)]
    number = {shard.name: position for position, shard in enumerate(expected)}
    if any(number.get(shard_name(split, size, position)) != position for position in range(len(expected))):
        raise DamagedData(f"{manifest.folder / DATASET_FILE}: the {split} shards of size {size} are not numbered 0 ..")
    shard, row = index["shard"].to_numpy(), index["row"].to_numpy()
    counts = [file.num_samples for file in expected]
    if not (
        np.array_equal(shard, np.repeat(np.arange(len(counts)), counts))
        and np.array_equal(row, [row for count in counts for row in range(count)])
        and index["key"].equals(about["key"])
    ):
        raise DamagedData(f"{path}: disagrees with {DATASET_FILE} or {MANIFEST_FILE}")
    offset, length = index["offset"].to_numpy(), index["length"].to_numpy()
    ends = np.array([file.bytes for file in expected], np.int64)[shard]
    pixels = size * size * manifest.spec.channels
    if (offset < 0).any() or (length <= 0).any() or (offset + length > ends).any():
        raise DamagedData(f"{path}: points outside its shards")
    if manifest.encoding == "raw" and (length != pixels).any():
        raise DamagedData(f"{path}: images are not of {pixels} bytes")
    extra = [name for name in about.column_names if name not in index.column_names]
    for name in extra:
        index = index.append_column(name, about[name])
    return index


def _choose(what: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{what} {value!r} is not in the data set; choices: {', '.join(map(str, choices)) or 'none'}")
