"""A source of images -> the shards of `genmodels.data.shards`: whole and verified, or not there at all.

The same source and configuration give the same bytes, whatever the number of processes. Samples are ordered by a
hash of their keys, so every shard holds a mixture of all classes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from genmodels.config import DatasetConfig
from genmodels.data.decode import Decoder, OpenPool, Sample, decode_all
from genmodels.data.fields import DataSpec, Record, Reject, Source
from genmodels.data.images import pyramid_sizes
from genmodels.data.journal import JOURNAL, Journal
from genmodels.data.shard_writer import ShardWriter
from genmodels.data.shards import DATASET_FILE, FORMAT, Manifest, data_digest, open_shards
from genmodels.data.sources import open_source
from genmodels.data.sources.names import NO_IMAGES, printable
from genmodels.data.splits import Splitter, hashed, joined_groups, some, split_groups
from genmodels.data.staging import disk_errors, staging
from genmodels.data.store import Store, Upload, adopt, stored_fingerprint
from genmodels.data.summary import SPLITS, Totals, write_tables
from genmodels.files import write_json

Progress = Callable[[int, int], None]  # images done, images in all
RULES = 2  # raise it when a source is read or split otherwise: data sets of other rules are made anew
SAVE_EVERY = 5.0  # seconds: what a killed preparation repeats at most
COPY = "copy of another image"


def prepare(
    name: str,
    config: DatasetConfig,
    out: Path,
    root: Path,
    num_processes: int | None = None,
    progress: Progress | None = None,
    open_pool: OpenPool | None = None,
) -> DataSpec:
    """Makes the folder `out` of the source that `config` names; returns at once where nothing has changed.

    `root` is where relative sources start. `num_processes` None: as many as the machine and the source are worth;
    the pool of `open_pool` decodes in their place. Where the configuration names a store, that takes the shards as
    they are finished, and copies of all else; `out` keeps the tables. What `out` held before stays until the new data
    set is complete; a run that was killed goes on where it saved last, unless source or configuration have changed.
    ValueError when no image is usable, or more than `config.max_reject_fraction` are not; OSError names path and bytes
    needed when the disk is full.
    """
    out = Path(out).absolute()
    source = open_source(config, Path(root))
    fingerprint = _fingerprint(name, config, source)
    if found := _unchanged(out, config.store, fingerprint):
        return found
    records, upload = _chosen(source, config), Upload(config.store) if config.store else None
    with staging(out) as folder, disk_errors(out, _num_bytes(config, len(records), folder), config.encoding):
        preparation = _Preparation(folder, name, config, source, records, fingerprint, upload)
        return preparation.run(num_processes, progress or (lambda done, total: None), open_pool)


def _fingerprint(name: str, config: DatasetConfig, source: Source) -> str:
    identity = [FORMAT, RULES, name, config.model_dump(mode="json", exclude={"store"}), source.fingerprint()]
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
    """At most `num_images` records, those of the lowest hashes, groups as wholes; by domain, then by hash.

    A split that the source names keeps its share of them.
    """
    records = sorted(source.records(), key=lambda record: hashed(record.key))
    assert all(one.key != other.key for one, other in pairwise(records)), "a source repeats a key"
    if config.num_images:
        if source.groups:
            records.sort(key=lambda record: hashed(record.group or ""))
        records = sorted(some(records, config.num_images), key=lambda record: hashed(record.key))
    chosen = sorted(records, key=lambda record: record.domain or "")
    return split_groups(chosen, joined_groups(source, chosen), config.holdout) if source.groups else chosen


def _num_bytes(config: DatasetConfig, num_records: int, folder: Path) -> int:
    """About what the shards still take on disk; encodings other than raw take less. A store leaves the open ones here.

    What a killed run wrote into `folder` is there already.
    """
    sizes = pyramid_sizes(config.image_size, config.pyramid)
    num_records = min(num_records, 2 * config.shard_size) if config.store else num_records
    num_bytes = num_records * sum(size * size * config.channels + 2048 for size in sizes)
    return max(0, num_bytes - sum(file.stat().st_size for file in folder.iterdir()))


class _Preparation:
    """One run of `prepare`: decoded samples go into shards, their descriptions into a journal, at last into tables."""

    def __init__(
        self,
        folder: Path,
        name: str,
        config: DatasetConfig,
        source: Source,
        records: list[Record],
        fingerprint: str,
        upload: Upload | None,
    ):
        self.folder, self.name, self.config, self.source, self.records = folder, name, config, source, records
        self.fingerprint, self.upload = fingerprint, upload
        self.decoder = Decoder(source, config, len(records[0].parts) if records else 0)
        self.writers = {split: ShardWriter(folder, split, config.shard_size) for split in SPLITS}
        self.seen: set[str] = set()  # hashes, where copies are dropped

    def run(self, num_processes: int | None, progress: Progress, open_pool: OpenPool | None) -> DataSpec:
        """Writes everything into the folder, dataset.json last."""
        with ExitStack() as stack:
            self.journal = Journal(self.folder, self.fingerprint)
            stack.callback(self.journal.close)
            for writer in self.writers.values():
                stack.callback(writer.abort)
            done, splitter = self._restore()
            self._remove_rubble()
            for split, sample in self._samples(done, splitter, num_processes, progress, open_pool):
                shard, row, places = self.writers[split].add(sample.packed)
                self.journal.accept(self._row(sample, split, shard, row), places)
            for writer in self.writers.values():
                writer.close()
            self._save(len(self.records), splitter)
            return self._finish()

    def _restore(self) -> tuple[int, Splitter]:
        """How many records a killed run has dealt with, and its splitter; writers go on where it saved them."""
        mark = self.journal.mark
        if not mark:
            return 0, Splitter(self.config.holdout)
        for split, state in mark["writers"].items():
            self.writers[split].restore(state)
        if self.config.duplicates == "drop":
            self.seen = {f"{row['domain']}{row['sha256']}" for row, _ in self.journal.accepted()}
        return mark["done"], Splitter(self.config.holdout, mark["mixed"])

    def _save(self, done: int, splitter: Splitter) -> None:
        writers = {split: writer.state() for split, writer in self.writers.items()}
        self.journal.save({"done": done, "mixed": splitter.mixed, "writers": writers})
        self._take_finished()

    def _take_finished(self) -> None:
        """Moves to the store what is finished, and known as such to whoever goes on after a kill."""
        for shard in [shard for writer in self.writers.values() for shard in writer.shards]:
            if self.upload and (path := self.folder / shard.name).exists():
                self.upload.take(path, shard)

    def _remove_rubble(self) -> None:
        """Removes what a killed run wrote after it saved last."""
        kept = {JOURNAL, *(name for writer in self.writers.values() for name in writer.files)}
        for file in self.folder.iterdir():
            if file.name not in kept:
                file.unlink()

    def _samples(
        self, first: int, splitter: Splitter, num_processes: int | None, progress: Progress, open_pool: OpenPool | None
    ) -> Iterator[tuple[str, Sample]]:
        """Every usable sample with its split, domain by domain; the others are noted as rejects."""
        domain = self.records[first - 1].domain if first else None
        saved = time.monotonic()
        decoded = decode_all(self.decoder, self.records[first:], num_processes, open_pool)
        for done, result in enumerate(decoded, first + 1):
            if (record := self.records[done - 1]).domain != domain:
                yield from splitter.end()
                splitter, domain = Splitter(self.config.holdout), record.domain
            if reject := self._refused(result):
                self.journal.reject(reject)
            elif isinstance(result, Sample):
                yield from splitter.add(result)
            if not splitter.held and time.monotonic() - saved > SAVE_EVERY:
                self._save(done, splitter)
                saved = time.monotonic()
            progress(done, len(self.records))
        yield from splitter.end()

    def _refused(self, result: Sample | Reject) -> Reject | None:
        """Why a result is left out: it could not be decoded, or is a copy where those are dropped."""
        if isinstance(result, Reject):
            return result
        if self.config.duplicates == "drop":
            content = f"{result.record.domain}{result.sha256}"
            if content in self.seen:
                return Reject(result.record.file, COPY)
            self.seen.add(content)
        return None

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

    def _finish(self) -> DataSpec:
        """Tables and dataset.json."""
        reasons = Counter(reject.reason for reject in self._rejects())
        totals, tables = write_tables(self.folder, self.journal, self._rejects(), self.config)
        self._check_rejects(reasons, totals.num.total())
        shards = tuple(sorted(shard for writer in self.writers.values() for shard in writer.shards))
        spec = self._spec(totals)
        spec = replace(spec, digest=data_digest(spec, self.config.encoding, shards))
        manifest = Manifest(
            folder=self.folder,
            spec=spec,
            encoding=self.config.encoding,
            source=self.source.describe(),
            fingerprint=self.fingerprint,
            counts=_counts(totals, reasons),
            shards=shards,
            tables=tables,
            store=self.config.store,
        )
        write_json(self.folder / DATASET_FILE, manifest.to_json())
        if self.upload:
            self.upload.finish(manifest)
        self.journal.remove()
        return spec

    def _rejects(self) -> Iterator[Reject]:
        yield from self.source.rejects
        yield from self.journal.rejects()

    def _check_rejects(self, reasons: Counter[str], accepted: int) -> None:
        """ValueError when too little of the source is usable. Files that are no images, and copies, do not count."""
        reasons = Counter({reason: num for reason, num in reasons.items() if reason not in (*NO_IMAGES, COPY)})
        rejected = reasons.total()
        worst = "; ".join(f"{reason}: {count}" for reason, count in reasons.most_common(3))
        if not accepted:
            raise ValueError(f"data set {self.name!r}: no usable image in {self.config.source!r} ({worst})")
        if rejected > self.config.max_reject_fraction * (rejected + accepted):
            raise ValueError(
                f"data set {self.name!r}: {rejected} of {rejected + accepted} images are unusable, "
                f"max_reject_fraction is {self.config.max_reject_fraction} ({worst})"
            )

    def _spec(self, totals: Totals) -> DataSpec:
        return DataSpec(
            name=self.name,
            channels=self.config.channels,
            image_size=self.config.image_size,
            sizes=pyramid_sizes(self.config.image_size, self.config.pyramid),
            num_train=totals.num["train"],
            num_test=totals.num["test"],
            classes=self.decoder.classes,
            attributes=tuple(self.source.attributes),
            domains=tuple(self.source.domains),
            num_parts=self.decoder.num_parts,
            group=(self.config.split_by or "") if self.source.groups else "",
            fit=self.config.fit,
            resampling=self.config.resampling,
            background=self.config.background,
            **totals.captions(),
        )


def _counts(totals: Totals, reasons: Counter[str]) -> dict[str, Any]:
    """What was found = accepted + rejected; of the samples: copies of others, and those enlarged."""
    return {
        "found": totals.num.total() + reasons.total(),
        "accepted": totals.num.total(),
        "rejected": reasons.total(),
        "rejects": dict(sorted(reasons.items())),
        "duplicates": totals.num_duplicates,
        "upscaled": totals.num_upscaled,
    }
