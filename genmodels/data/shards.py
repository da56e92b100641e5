"""A data set on disk: tar shards that webdataset reads too, an offset index, a manifest, and hashes of all of it.

<split>-<size>-<shard>.tar   for each sample <key>.npy (or .png, .jpg, .webp) and <key>.json
index-<size>.parquet         where in its tar each image's payload lies
manifest.parquet             what each sample is and what it was made of; rejects.parquet: what was left out
dataset.json                 written last: the DataSpec, every file's sha256, counts, the digest of all

The tars may lie in a store instead (genmodels.data.store), which dataset.json then names.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from genmodels.data.fields import DataSpec
from genmodels.data.images import Pixels

FORMAT = 3  # raise it when decoding or layout change: data sets of another format are made anew
DATASET_FILE = "dataset.json"
MANIFEST_FILE, REJECTS_FILE = "manifest.parquet", "rejects.parquet"
BLOCK = tarfile.BLOCKSIZE
SHARD_NAME = re.compile(r"(train|test)-[1-9][0-9]*-[0-9]{5,}\.tar")
MEMBER_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_/-]*\.(npy|png|jpg|webp|json)")
SAVE_AS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True},
}

INDEX_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("key", pa.string()),
        ("offset", pa.int64()),  # of the image's payload in the tar; raw: of its pixels
        ("length", pa.int64()),  # bytes
    ]
)


class DamagedData(ValueError):
    """The data set on disk is not what `prepare` wrote; the message names the file."""


class ShardFile(NamedTuple):
    """One tar as dataset.json lists it."""

    name: str
    split: str
    size: int  # pixels
    num_samples: int
    bytes: int
    sha256: str


class TableFile(NamedTuple):
    """One Parquet file as dataset.json lists it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What dataset.json says of a data set."""

    folder: Path
    spec: DataSpec
    encoding: str
    source: str  # one line: the layout that was found
    fingerprint: str  # of configuration and source, as they were
    counts: dict[str, Any]
    shards: tuple[ShardFile, ...]
    tables: tuple[TableFile, ...]
    store: str | None = None  # URL of the place that holds the shards; None: the folder does

    @property
    def files(self) -> list[ShardFile | TableFile]:
        """Every file but dataset.json."""
        return [*self.shards, *self.tables]

    def to_json(self) -> dict[str, Any]:
        """Plain values for dataset.json."""
        place = {"store": self.store} if self.store else {}  # says nothing where there is none, as before stores
        return place | {
            "format": FORMAT,
            "spec": self.spec.to_json(),
            "encoding": self.encoding,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "counts": self.counts,
            "shards": [shard._asdict() for shard in self.shards],
            "tables": [table._asdict() for table in self.tables],
        }


def data_digest(spec: DataSpec, encoding: str, shards: Sequence[ShardFile]) -> str:
    """sha256 that identifies the content: the specification but its name, the encoding, every shard's hash."""
    values = {key: value for key, value in spec.to_json().items() if key not in ("name", "digest")}
    content = [FORMAT, values, encoding, [[shard.name, shard.sha256] for shard in shards]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def open_shards(folder: Path) -> Manifest:
    """The data set in `folder`, after a check of every file's presence and size (no content is read).

    Shards that lie in a store are checked when they are fetched. DamagedData names the missing or truncated file;
    ValueError when there is no data set.
    """
    manifest = read_manifest(folder)
    for file in manifest.tables if manifest.store else manifest.files:
        _check_size(manifest.folder / file.name, file.bytes)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """What dataset.json says, whether or not the other files are there; errors as of `open_shards`."""
    path = Path(folder) / DATASET_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no data set ({DATASET_FILE} is missing); prepare it first")
    try:
        return _parse(Path(folder), json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedData(f"{path}: not as prepare wrote it ({error})") from None


def _parse(folder: Path, values: dict[str, Any]) -> Manifest:
    if values["format"] != FORMAT:
        raise ValueError(f"format {values['format']!r}, this program reads {FORMAT}")
    spec = DataSpec.from_json(values["spec"])
    manifest = Manifest(
        folder=folder,
        spec=spec,
        encoding=values["encoding"],
        source=values["source"],
        fingerprint=values["fingerprint"],
        counts=values["counts"],
        shards=tuple(ShardFile(**shard) for shard in values["shards"]),
        tables=tuple(TableFile(**table) for table in values["tables"]),
        store=values.get("store"),
    )
    expected_tables = {MANIFEST_FILE, REJECTS_FILE, *(index_name(size) for size in spec.sizes)}
    for shard in manifest.shards:
        if not SHARD_NAME.fullmatch(shard.name):
            raise ValueError(f"shard name {shard.name!r}")
    if {table.name for table in manifest.tables} != expected_tables:
        raise ValueError("its list of tables is not complete")
    if manifest.encoding != "raw" and manifest.encoding not in SAVE_AS:
        raise ValueError(f"encoding {manifest.encoding!r}")
    if data_digest(spec, manifest.encoding, manifest.shards) != spec.digest:
        raise ValueError("its digest is not that of its content")
    return manifest


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise DamagedData(f"{path}: missing")
    if (actual := path.stat().st_size) != expected:
        raise DamagedData(f"{path}: {actual} bytes, should be {expected}")


def index_name(size: int) -> str:
    """The file name of one size's index."""
    return f"index-{size}.parquet"


def shard_name(split: str, size: int, shard: int) -> str:
    """The file name of one shard."""
    return f"{split}-{size}-{shard:05d}.tar"


# Writing


class Packed(NamedTuple):
    """One sample at one size as it stands in a tar, and where in that its image's payload lies."""

    blob: bytes
    offset: int
    length: int


def pack(key: str, levels: dict[int, Pixels], encoding: str, about: dict[str, Any]) -> dict[int, Packed]:
    """Tar members of one sample by size: image (uint8 [H, W, C]) and JSON. The same input gives the same bytes."""
    text = _member(f"{key}.json", json.dumps(about, sort_keys=True).encode())
    packed = {}
    for size, pixels in sorted(levels.items()):
        header, payload = _encode(pixels, encoding)
        image = _member(f"{key}.{'npy' if encoding == 'raw' else encoding}", header + payload)
        packed[size] = Packed(image + text, BLOCK + len(header), len(payload))
    return packed


def _encode(pixels: Pixels, encoding: str) -> tuple[bytes, bytes]:
    """The member's header, where it is a .npy, and payload."""
    if encoding == "raw":
        return _npy_header(pixels.shape), pixels.tobytes()
    stream = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(stream, **SAVE_AS[encoding])
    return b"", stream.getvalue()


@cache
def _npy_header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _member(name: str, data: bytes) -> bytes:
    """A file of a tar, exactly as tarfile writes it (mtime, uid and gid 0, mode 0644), at a fifth of its time."""
    header, plain = bytearray(_blank_header()), name.encode("ascii")
    assert len(plain) <= 100
    header[: len(plain)] = plain
    header[124:135] = b"%011o" % len(data)
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % BLOCK)


@cache
def _blank_header() -> bytes:
    """The header of an empty file without a name; its checksum is blank, as it counts in the sum."""
    header = bytearray(tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
    header[148:156] = b" " * 8
    return bytes(header)


class ShardWriter:
    """Writes one split, streaming: one tar a size for each `shard_size` samples."""

    def __init__(self, folder: Path, split: str, shard_size: int):
        self.folder, self.split, self.shard_size = folder, split, shard_size
        self.shards: list[ShardFile] = []
        self.num_samples = 0
        self._tars: dict[int, _Tar] = {}

    def add(self, packed: dict[int, Packed]) -> tuple[int, int, dict[int, tuple[int, int]]]:
        """Appends one sample, at every size; returns its shard, its row, and by size its payload's place."""
        shard, row = divmod(self.num_samples, self.shard_size)
        if row == 0:
            self.close()
            self._tars = {size: _Tar(self.folder / shard_name(self.split, size, shard)) for size in packed}
        starts = {size: self._tars[size].append(sample.blob) for size, sample in packed.items()}
        self.num_samples += 1
        return shard, row, {size: (start + packed[size].offset, packed[size].length) for size, start in starts.items()}

    def close(self) -> None:
        """Ends the shards that are open."""
        for size, tar in self._tars.items():
            num_bytes, sha256 = tar.close()
            num = (self.num_samples - 1) % self.shard_size + 1
            self.shards.append(ShardFile(tar.path.name, self.split, size, num, num_bytes, sha256))
        self._tars = {}

    def state(self) -> dict[str, Any]:
        """Where this writer is, all of it durable on disk."""
        return {
            "num_samples": self.num_samples,
            "shards": self.shards,
            "open": {size: tar.sync() for size, tar in self._tars.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` returned: what was written since is cut off."""
        self.num_samples, self.shards = state["num_samples"], [ShardFile(*shard) for shard in state["shards"]]
        shard = (self.num_samples - 1) // self.shard_size
        for size, num_bytes in state["open"].items():
            self._tars[int(size)] = _Tar(self.folder / shard_name(self.split, int(size), shard), num_bytes)

    @property
    def files(self) -> list[str]:
        """Names of the shards written so far, ended or open."""
        return [shard.name for shard in self.shards] + [tar.path.name for tar in self._tars.values()]

    def abort(self) -> None:
        """Lets go of open files."""
        for tar in self._tars.values():
            tar.file.close()
        self._tars = {}


class _Tar:
    """A tar in the making: its bytes go to disk and into the hash once. Goes on after its first `bytes`."""

    def __init__(self, path: Path, num_bytes: int = 0):
        self.path, self.bytes = path, num_bytes
        self.file: BinaryIO = path.open("r+b" if num_bytes else "wb")
        self.file.truncate(num_bytes)
        self._hash = hashlib.sha256()
        while piece := self.file.read(1 << 20) if num_bytes else b"":
            self._hash.update(piece)

    def append(self, blob: bytes) -> int:
        """Writes `blob`; returns where it starts."""
        start = self.bytes
        self.file.write(blob)
        self._hash.update(blob)
        self.bytes += len(blob)
        return start

    def sync(self) -> int:
        """Makes what was written durable; returns its length."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.bytes

    def close(self) -> tuple[int, str]:
        """Ends the archive; returns its length and sha256."""
        end = self.bytes + 2 * BLOCK
        self.append(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))
        self.sync()
        self.file.close()
        return self.bytes, self._hash.hexdigest()
