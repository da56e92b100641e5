"""A source of images -> the shards of `genmodels.data.shards`: whole and verified, or not there at all.

The same source and configuration give the same bytes, whatever the number of processes. Samples are ordered by a
hash of their keys, so every shard holds a mixture of all classes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genmodels.config import DatasetConfig
from genmodels.data.captions import MAX_WORDS, build_vocabulary, words
from genmodels.data.decode import Decoder, Sample, decode_all
from genmodels.data.fields import DataSpec, Record
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
from genmodels.data.sources import NOT_AN_IMAGE_FILE, Reject, Source, open_source, printable
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
    What `out` held before stays until the new data set is complete. ValueError when no image is usable, or more than
    `config.max_reject_fraction` are not; OSError names path and bytes needed when the disk is full.
    """
    out = Path(out).absolute()
    source = open_source(config, Path(root))
    fingerprint = _fingerprint(name, config, source)
    if found := _unchanged(out, fingerprint):
        return found
    records = _chosen(source, config)
    with _staging(out) as folder, _disk_errors(out, _num_bytes(config, len(records)), config.encoding):
        return _Preparation(name, config, source, records, fingerprint).run(folder, num_processes, progress)


def _fingerprint(name: str, config: DatasetConfig, source: Source) -> str:
    identity = [FORMAT, name, config.model_dump(mode="json"), source.fingerprint()]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _unchanged(out: Path, fingerprint: str) -> DataSpec | None:
    """The data set in `out` if it is that of `fingerprint` and undamaged. ValueError if `out` is something else."""
    if out.exists() and not (out / DATASET_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no data set; choose another folder or remove it")
    try:
        manifest = open_shards(out)
    except ValueError:  # none, or damaged: made anew
        return None
    return manifest.spec if manifest.fingerprint == fingerprint else None


def _chosen(source: Source, config: DatasetConfig) -> list[Record]:
    """At most `num_images` records, those of the lowest hashes, groups as wholes; by domain, then by hash."""
    records = list(source.records())
    hashed = {_hash(record.key): record for record in records}
    assert len(hashed) == len(records), "a source repeats a key"
    order = sorted(hashed)
    if source.groups:
        order.sort(key=lambda digest: _hash(hashed[digest].group or ""))
    chosen = sorted((hashed[digest] for digest in sorted(order[: config.num_images])), key=lambda r: r.domain or "")
    return split_groups(chosen, _joined(source, chosen), config.holdout) if source.groups else chosen


def _joined(source: Source, records: list[Record]) -> dict[str, str]:
    """By group, one that it shares a split with: itself, or the first of those that hold copies of its images."""
    joined = {record.group: record.group for record in records if record.group}
    holder: dict[bytes, str] = {}  # by content

    def first(group: str) -> str:
        return group if joined[group] == group else first(joined[group])

    for record in records:
        with suppress(OSError):  # decoding will say so
            data = source.read(record)
            if record.group and isinstance(data, bytes):
                groups = first(record.group), first(holder.setdefault(hashlib.sha256(data).digest(), record.group))
                joined[max(groups)] = min(groups)
    return {group: first(group) for group in joined}


def split_groups(records: list[Record], joined: dict[str, str], holdout: float) -> list[Record]:
    """The records, each with a split: test when the hash of its group (see `_joined`) falls below `holdout`.

    Where holdout > 0 and there are two groups, each side has one at least. What the source split stays as it is.
    """
    fractions = {group: fraction(_hash(f"split {group}").hex()) for group in joined.values()}
    order = sorted(fractions, key=lambda group: fractions[group])
    test = {group for group in order if fractions[group] < holdout}
    if holdout and len(order) > 1:
        test = (test | set(order[:1])) - set(order[-1:])
    sides = {group: "test" if joined[group] in test else "train" for group in joined}
    return [replace(record, split=record.split or sides[record.group or ""]) for record in records]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _num_bytes(config: DatasetConfig, num_records: int) -> int:
    """About what the shards take on disk; encodings other than raw take less."""
    sizes = pyramid_sizes(config.image_size, config.pyramid)
    return num_records * sum(size * size * config.channels + 2048 for size in sizes)


# The folder: whole or not at all


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A sibling folder to write into, swapped with `out` at the end; removed when something fails."""
    folder, replaced = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.replaced")
    with _locked(folder):
        if replaced.exists() and not out.exists():  # an earlier run was killed between its two renames
            replaced.rename(out)
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
        if out.exists():
            out.rename(replaced)
        folder.rename(out)
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """An empty folder that one process owns; the lock ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _owns(descriptor, folder):
            raise ValueError(f"{folder} is in use: another process prepares this data set")
        for left in folder.iterdir():  # by a killed run
            left.unlink()
        yield
    finally:
        os.close(descriptor)


def _owns(descriptor: int, folder: Path) -> bool:
    """Takes the lock; False if another process has it, or has just moved the folder to its place."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def _disk_errors(out: Path, num_bytes: int, encoding: str) -> Iterator[None]:
    """A full disk, or a quota, named with path and bytes; before anything is written where the size is known."""
    try:
        if encoding == "raw" and shutil.disk_usage(out.parent).free < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(out.parent).free
        raise OSError(error.errno, f"{out}: no room, needs up to {num_bytes:,} bytes, {free:,} are free") from error


# The content


class _Preparation:
    """One run of `prepare`: decoded samples go into shards, their descriptions into tables."""

    def __init__(self, name: str, config: DatasetConfig, source: Source, records: list[Record], fingerprint: str):
        self.name, self.config, self.source, self.records = name, config, source, records
        self.fingerprint = fingerprint
        self.decoder = Decoder(source, config, len(records[0].parts) if records else 0)
        self.rejects = list(source.rejects)
        self.rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}

    def run(self, folder: Path, num_processes: int | None, progress: Progress | None) -> DataSpec:
        """Writes everything into `folder`, dataset.json last."""
        with ExitStack() as stack:
            writers = {split: ShardWriter(folder, split, self.config.shard_size) for split in ("train", "test")}
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
        )
        write_json(folder / DATASET_FILE, manifest.to_json())
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


def assign_splits(samples: Iterable[Sample], holdout: float) -> Iterator[tuple[str, Sample]]:
    """(split, sample): the split that its record names, else test when the content's hash falls below `holdout`.

    So a sample keeps its split when others are added, and copies of one image share theirs. Where all hashes fall on
    one side, the sample nearest to the other side goes there: with holdout > 0, two images are one of each. For that
    one sample is held back until both sides are known.
    """
    held: Sample | None = None  # of the only side so far, the sample nearest to the other
    only, several, mixed = "train", False, False
    for sample in samples:
        side = sample.record.split or ("test" if fraction(sample.sha256) < holdout else "train")
        if mixed or sample.record.split or not holdout:
            yield side, sample
        elif held is None:
            held, only = sample, side
        elif side == only:
            held, released = sorted((held, sample), key=lambda each: fraction(each.sha256), reverse=only == "test")
            several = True
            yield only, released
        else:
            yield only, held
            yield side, sample
            held, mixed = None, True
    if held is not None:
        yield "test" if several and only == "train" else "train", held


def fraction(digest: str) -> float:
    """A hex digest as a number in [0, 1)."""
    return int(digest[:8], 16) / 2**32


def _write_table(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> TableFile:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return TableFile(path.name, path.stat().st_size, sha256_file(path))
