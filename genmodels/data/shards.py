"""A data set on disk: tar shards that webdataset reads too, an offset index, a manifest, and hashes of all of it.

<split>-<size>-<shard>.tar   for each sample <key>.npy (or .png, .jpg, .webp) and <key>.json
index-<size>.parquet         where in its tar each image's payload lies
manifest.parquet             what each sample is and what it was made of; rejects.parquet: what was left out
dataset.json                 written last: the DataSpec, every file's sha256, counts, the digest of all

The tars may lie in a store instead (genmodels.data.store), which dataset.json then names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from genmodels.data.fields import DataSpec

FORMAT = 3  # raise it when decoding or layout change: data sets of another format are made anew
DATASET_FILE = "dataset.json"
MANIFEST_FILE, REJECTS_FILE = "manifest.parquet", "rejects.parquet"
REPLACED = "the data set was prepared anew while it was in use; start again"
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
    """sha256 that identifies the content: what the specification says of it, the encoding, every shard's hash."""
    left_out = ("name", "digest", "fit", "resampling", "background")  # the last three show in the pixels
    values = {key: value for key, value in spec.to_json().items() if key not in left_out}
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


def map_file(manifest: Manifest, file: ShardFile | TableFile) -> NDArray[np.uint8]:
    """The bytes of a file in the data set's folder, mapped, after a check of their sha256.

    DamagedData where they are not those that the manifest names: altered, or of a data set that took their place.
    """
    path = manifest.folder / file.name
    try:
        content = map_bytes(path, file.bytes)
    except OSError:
        _refuse_successor(manifest)
        _check_size(path, file.bytes)
        raise
    if hashlib.sha256(content.data).hexdigest() != file.sha256:
        _refuse_successor(manifest)
        what = f"sha256 differs, the content was altered; remove {manifest.folder} and prepare it again"
        raise DamagedData(f"{path}: {what}")
    return content


def map_bytes(path: Path, num_bytes: int) -> NDArray[np.uint8]:
    """A file's first bytes, in memory as they are needed. It stays open no longer: there may be thousands of shards."""
    try:
        return torch.from_file(str(path), shared=False, size=num_bytes, dtype=torch.uint8).numpy()
    except RuntimeError as error:
        raise OSError(" ".join(str(error).split())) from None


def _refuse_successor(manifest: Manifest) -> None:
    """DamagedData where the folder holds another data set by now."""
    try:
        check_digest(read_manifest(manifest.folder), manifest.spec.digest)
    except DamagedData:
        raise
    except ValueError:  # it is being replaced just now
        raise DamagedData(f"{manifest.folder}: {REPLACED}") from None


def check_digest(manifest: Manifest, digest: str) -> None:
    """DamagedData unless this is the data set of that digest."""
    if manifest.spec.digest != digest:
        raise DamagedData(f"{manifest.folder}: {REPLACED}")


def index_name(size: int) -> str:
    """The file name of one size's index."""
    return f"index-{size}.parquet"


def shard_name(split: str, size: int, shard: int) -> str:
    """The file name of one shard."""
    return f"{split}-{size}-{shard:05d}.tar"
