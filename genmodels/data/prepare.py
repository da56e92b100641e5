"""A source of images -> the shards of `genmodels.data.shards`: whole and verified, or not there at all.

The same source and configuration give the same bytes, whatever the number of processes. Samples are ordered by a
hash of their keys, so every shard holds a mixture of all classes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genmodels.config import DatasetConfig
from genmodels.data.captions import MAX_WORDS, build_vocabulary, words
from genmodels.data.decode import Decoder, Sample, decode_all
from genmodels.data.fields import DataSpec, Record, Reject, Source
from genmodels.data.folder import NOT_AN_IMAGE_FILE, printable
from genmodels.data.images import is_upscaled, pyramid_sizes
from genmodels.data.shards import (
    DATASET_FILE,
    FORMAT,
    INDEX_SCHEMA,
    MANIFEST_FILE,
    REJECTS_FILE,
    Manifest,
    ShardWriter,
    TableFile,
    data_digest,
    index_name,
    open_shards,
)
from genmodels.data.sources import open_source
from genmodels.data.splits import assign_splits, hashed, joined_groups, split_groups
from genmodels.data.staging import disk_errors, staging
from genmodels.data.store import Store, Upload, adopt, stored_fingerprint
from genmodels.files import sha256_file, write_json

Progress = Callable[[int, int], None]  # images done, images in all

MANIFEST_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("file", pa.string()),  # path in the source
        ("sha256", pa.string()),  # of the file; of the pixels, where they were rendered
        ("bytes", pa.int64()),
        ("width", pa.int32()),  # of the original, upright
        ("height", pa.int32()),
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("label", pa.int64()),  # index of the class
        ("class", pa.string()),
        ("domain", pa.string()),
        ("attributes", pa.list_(pa.uint8())),  # in the order of the DataSpec
        ("parts", pa.list_(pa.list_(pa.float32(), 4))),  # left, top, right, bottom: fractions of the squared image
        ("captions", pa.list_(pa.string())),
        ("group", pa.int64()),  # number of the value of the column that split the images
    ]
)
REJECTS_SCHEMA = pa.schema([("file", pa.string()), ("reason", pa.string())])


def prepare(
    name: str,
    config: DatasetConfig,
    out: Path,
    root: Path,
    num_processes: int | None = None,
    progress: Progress | None = None,
) -> DataSpec:
    """Makes the folder `out` of the source that `config` names; returns at once where nothing has changed.

    `root` is where relative sources start. `num_processes` None: as many as the machine and the source are worth.
    Where the configuration names a store, that takes the shards, each as soon as it is finished, and copies of all
    else; `out` keeps the tables. What `out` held before stays until the new data set is complete. ValueError when no
    image is usable, or more than `config.max_reject_fraction` are not; OSError names path and bytes needed when the
    disk is full.
    """
    out = Path(out).absolute()
    source = open_source(config, Path(root))
    fingerprint = _fingerprint(name, config, source)
    if found := _unchanged(out, config.store, fingerprint):
        return found
    records, upload = _chosen(source, config), Upload(config.store) if config.store else None
    with staging(out) as folder, disk_errors(out, _num_bytes(config, len(records)), config.encoding):
        return _Preparation(name, config, source, records, fingerprint, upload).run(folder, num_processes, progress)


def _fingerprint(name: str, config: DatasetConfig, source: Source) -> str:
    identity = [FORMAT, name, config.model_dump(mode="json", exclude={"store"}), source.fingerprint()]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _unchanged(out: Path, store: str | None, fingerprint: str) -> DataSpec | None:
    """The data set in `out`, or in the store, if it is that of `fingerprint` and undamaged.

    ValueError if `out` is something else.
    """
    if out.exists() and not (out / DATASET_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no data set; choose another folder or remove it")
    if not (found := _whole(out, store, fingerprint)) and store and stored_fingerprint(store) == fingerprint:
        adopt(store, out)
        found = _whole(out, store, fingerprint)
    return found


def _whole(out: Path, store: str | None, fingerprint: str) -> DataSpec | None:
    try:
        manifest = open_shards(out)
    except ValueError:  # none, or damaged: made anew
        return None
    if (manifest.fingerprint, manifest.store) != (fingerprint, store):
        return None
    return None if store and Store(store).missing(manifest) else manifest.spec


def _chosen(source: Source, config: DatasetConfig) -> list[Record]:
    """At most `num_images` records, those of the lowest hashes, groups as wholes; by domain, then by hash."""
    records = list(source.records())
    by_hash = {hashed(record.key): record for record in records}
    assert len(by_hash) == len(records), "a source repeats a key"
    order = sorted(by_hash)
    if source.groups:
        order.sort(key=lambda digest: hashed(by_hash[digest].group or ""))
    chosen = sorted((by_hash[digest] for digest in sorted(order[: config.num_images])), key=lambda r: r.domain or "")
    return split_groups(chosen, joined_groups(source, chosen), config.holdout) if source.groups else chosen


def _num_bytes(config: DatasetConfig, num_records: int) -> int:
    """About what the shards take on disk; encodings other than raw take less. A store leaves the open ones here."""
    sizes = pyramid_sizes(config.image_size, config.pyramid)
    num_records = min(num_records, 2 * config.shard_size) if config.store else num_records
    return num_records * sum(size * size * config.channels + 2048 for size in sizes)


class _Preparation:
    """One run of `prepare`: decoded samples go into shards, their descriptions into tables."""

    def __init__(
        self,
        name: str,
        config: DatasetConfig,
        source: Source,
        records: list[Record],
        fingerprint: str,
        upload: Upload | None,
    ):
        self.name, self.config, self.source, self.records = name, config, source, records
        self.fingerprint, self.upload = fingerprint, upload
        self.decoder = Decoder(source, config, len(records[0].parts) if records else 0)
        self.rejects = list(source.rejects)
        self.rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}

    def run(self, folder: Path, num_processes: int | None, progress: Progress | None) -> DataSpec:
        """Writes everything into `folder`, dataset.json last."""
        with ExitStack() as stack:
            take, num = self.upload.take if self.upload else None, self.config.shard_size
            writers = {split: ShardWriter(folder, split, num, take) for split in ("train", "test")}
            for writer in writers.values():
                stack.callback(writer.abort)
            for split, sample in self._samples(num_processes, progress):
                shard, row = writers[split].add(sample.record.key, sample.packed)
                self.rows[split].append(self._row(sample, split, shard, row))
            self._check_rejects()
            for writer in writers.values():
                writer.close()
        shards = tuple(sorted(shard for writer in writers.values() for shard in writer.shards))
        spec = self._spec()
        spec = replace(spec, digest=data_digest(spec, self.config.encoding, shards))
        manifest = Manifest(
            folder=folder,
            spec=spec,
            encoding=self.config.encoding,
            source=self.source.describe(),
            fingerprint=self.fingerprint,
            counts=self._counts(),
            shards=shards,
            tables=self._write_tables(folder, list(writers.values())),
            store=self.config.store,
        )
        write_json(folder / DATASET_FILE, manifest.to_json())
        if self.upload:
            self.upload.finish(manifest)
        return spec

    def _write_tables(self, folder: Path, writers: list[ShardWriter]) -> tuple[TableFile, ...]:
        rejects = [{"file": printable(reject.file), "reason": reject.reason} for reject in self.rejects]
        tables = [
            _write_table(folder / MANIFEST_FILE, self.rows["train"] + self.rows["test"], MANIFEST_SCHEMA),
            _write_table(folder / REJECTS_FILE, rejects, REJECTS_SCHEMA),
        ]
        for size in pyramid_sizes(self.config.image_size, self.config.pyramid):
            rows = [row for writer in writers for row in writer.index.get(size, [])]
            index = [dict(zip(INDEX_SCHEMA.names, row, strict=True)) for row in rows]
            tables.append(_write_table(folder / index_name(size), index, INDEX_SCHEMA))
        return tuple(tables)

    def _samples(self, num_processes: int | None, progress: Progress | None) -> Iterator[tuple[str, Sample]]:
        """Every usable sample with its split; the others are noted as rejects."""
        accepted = self._accepted(decode_all(self.decoder, self.records, num_processes), progress)
        for _, samples in groupby(accepted, key=lambda sample: sample.record.domain):
            yield from assign_splits(samples, self.config.holdout)

    def _accepted(self, decoded: Iterable[Sample | Reject], progress: Progress | None) -> Iterator[Sample]:
        for done, result in enumerate(decoded, 1):
            if progress:
                progress(done, len(self.records))
            if isinstance(result, Sample):
                yield result
            else:
                self.rejects.append(result)

    def _row(self, sample: Sample, split: str, shard: int, row: int) -> dict[str, Any]:
        record = sample.record
        return {
            "key": record.key,
            "file": printable(record.file),
            "sha256": sample.sha256,
            "bytes": sample.bytes,
            "width": sample.width,
            "height": sample.height,
            "split": split,
            "shard": shard,
            "row": row,
            "label": self.decoder.label(record),
            "class": record.label,
            "domain": record.domain,
            "attributes": [(record.attributes or {})[name] for name in self.source.attributes],
            "parts": [list(box) for box in sample.parts],
            "captions": list(record.captions),
            "group": self.decoder.group(record),
        }

    def _check_rejects(self) -> None:
        """ValueError when too little of the source is usable. Files that are no images do not count."""
        reasons = Counter(reject.reason for reject in self.rejects if reject.reason != NOT_AN_IMAGE_FILE)
        rejected, accepted = reasons.total(), sum(map(len, self.rows.values()))
        worst = "; ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3))
        if not accepted:
            raise ValueError(f"data set {self.name!r}: no usable image in {self.config.source!r} ({worst})")
        if rejected > self.config.max_reject_fraction * (rejected + accepted):
            raise ValueError(
                f"data set {self.name!r}: {rejected} of {rejected + accepted} images are unusable, "
                f"max_reject_fraction is {self.config.max_reject_fraction} ({worst})"
            )

    def _counts(self) -> dict[str, Any]:
        """What was found = accepted + rejected; of the samples: copies of others, and those enlarged."""
        rows = self.rows["train"] + self.rows["test"]
        reasons = Counter(reject.reason for reject in self.rejects)
        return {
            "found": len(rows) + len(self.rejects),
            "accepted": len(rows),
            "rejected": len(self.rejects),
            "rejects": dict(sorted(reasons.items())),
            "duplicates": len(rows) - len({row["sha256"] for row in rows}),
            "upscaled": sum(is_upscaled(row["width"], row["height"], self.config) for row in rows),
        }

    def _spec(self) -> DataSpec:
        rows = self.rows["train"] + self.rows["test"]
        return DataSpec(
            name=self.name,
            channels=self.config.channels,
            image_size=self.config.image_size,
            sizes=pyramid_sizes(self.config.image_size, self.config.pyramid),
            num_train=len(self.rows["train"]),
            num_test=len(self.rows["test"]),
            classes=self.decoder.classes,
            attributes=tuple(self.source.attributes),
            domains=tuple(self.source.domains),
            num_parts=self.decoder.num_parts,
            group=(self.config.split_by or "") if self.source.groups else "",
            **self._caption_facts(rows),
        )

    def _caption_facts(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Vocabulary and sizes of the captions, where every image has one."""
        if not all(row["captions"] for row in rows):
            return {}
        captions = [caption for row in self.rows["train"] for caption in row["captions"]]
        return {
            "vocabulary": build_vocabulary(captions),
            "num_captions": max(len(row["captions"]) for row in rows),
            "num_words": min(MAX_WORDS, max(len(words(caption)) for caption in captions)),
        }


def _write_table(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> TableFile:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return TableFile(path.name, path.stat().st_size, sha256_file(path))
