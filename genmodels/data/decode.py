"""Records -> samples ready for their shards, in one process or several, always in order."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from genmodels.config import DatasetConfig
from genmodels.data.fields import Box, Record, Reject, Source
from genmodels.data.images import Data, Pixels, Rejected, fit, fit_box, load, pyramid, quantized
from genmodels.data.key_patches import key_patches
from genmodels.data.remote import Outage
from genmodels.data.shard_writer import Packed, pack
from genmodels.data.splits import fraction, hashed

IMAGES_PER_PROCESS = 4000  # fewer are not worth the start of another process (seconds)
CHUNK = 32  # images a task
CHUNK_BYTES = 8 << 20  # at most, of decoded images


class Sample(NamedTuple):
    """A decoded record, ready for its shard."""

    record: Record
    parts: tuple[Box, ...]  # of the squared image
    sha256: str
    bytes: int
    width: int
    height: int
    packed: dict[int, Packed]  # by size


class Decoder:
    """Record -> Sample, or the reason why not. Picklable; knows nothing of other records."""

    def __init__(self, source: Source, config: DatasetConfig, num_parts: int):  # parts that the records bring
        self.source, self.config, self.num_given = source, config, num_parts
        self.num_parts = num_parts or config.num_parts
        self.classes, self.attributes = tuple(sorted(source.classes)), tuple(source.attributes)
        self._groups = {group: number for number, group in enumerate(source.groups)}

    def __call__(self, record: Record) -> Sample | Reject:
        """Reads, decodes and packs one record."""
        try:
            self._check(record)
            return self._sample(record, self._read(record))
        except Rejected as rejected:
            return Reject(record.file, str(rejected))

    def label(self, record: Record) -> int | None:
        """The index of the record's class."""
        return None if record.label is None else self.classes.index(record.label)

    def group(self, record: Record) -> int | None:
        """The number of the record's group."""
        return None if record.group is None else self._groups[record.group]

    def _check(self, record: Record) -> None:
        if self.classes and record.label is None:
            raise Rejected("no label")
        if set(record.attributes or ()) != set(self.attributes):
            raise Rejected("attributes missing")
        if len(record.parts) != self.num_given:
            raise Rejected(f"not {self.num_given} parts")

    def _read(self, record: Record) -> Data:
        try:
            return self.source.read(record)
        except Outage:
            raise
        except OSError as error:
            raise Rejected(f"cannot be read ({error.strerror})") from error

    def _sample(self, record: Record, data: Data) -> Sample:
        if isinstance(data, np.ndarray):  # values are samples as they are
            return self._packed(record, quantized(data), data.tobytes(), data.shape[1], data.shape[0], record.parts)
        image = load(data, self.config)
        place = fraction(hashed(record.key).hex()) if self.config.fit == "random_crop" else 0.5
        parts = tuple(fit_box(box, image.width, image.height, self.config, place) for box in record.parts)
        pixels = fit(image, self.config, place)
        if self.config.num_parts:
            parts = key_patches(pixels, self.config.num_parts)
        content = data if isinstance(data, bytes) else image.tobytes()
        return self._packed(record, pixels, content, image.width, image.height, parts)

    def _packed(
        self, record: Record, pixels: Pixels, content: bytes, width: int, height: int, parts: tuple[Box, ...]
    ) -> Sample:
        levels = pyramid(pixels) if self.config.pyramid else {self.config.image_size: pixels}
        return Sample(
            record=record,
            parts=parts,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            width=width,
            height=height,
            packed=pack(record.key, levels, self.config.encoding, self._about(record, parts)),
        )

    def _about(self, record: Record, parts: tuple[Box, ...]) -> dict[str, Any]:
        """What the sample's JSON says; only what there is."""
        about = {
            "label": self.label(record),
            "class": record.label,
            "attributes": record.attributes,
            "captions": record.captions,
            "parts": parts,
            "domain": record.domain,
            "group": record.group,
        }
        return {key: value for key, value in about.items() if value not in (None, ())}


class Pool(Protocol):
    """Processes that decode: of this machine, or of a cluster."""

    size: int  # processes

    def submit(self, records: list[Record]) -> Callable[[], list[Sample | Reject]]:
        """Begins a task; calling what it returns waits for its result."""

    def close(self) -> None:
        """Ends the processes; tasks under way are dropped."""


OpenPool = Callable[[Decoder], Pool]


def decode_all(
    decoder: Decoder, records: list[Record], num_processes: int | None, open_pool: OpenPool | None = None
) -> Iterator[Sample | Reject]:
    """Results in the order of the records. A bounded number of tasks is under way, so memory stays flat."""
    num_processes = num_processes or min(len(os.sched_getaffinity(0)), 1 + len(records) // IMAGES_PER_PROCESS)
    if num_processes == 1 and not open_pool:
        yield from map(decoder, records)
        return
    size = max(1, min(CHUNK, CHUNK_BYTES // (decoder.config.image_size**2 * decoder.config.channels)))
    chunks = (records[start : start + size] for start in range(0, len(records), size))
    pool = open_pool(decoder) if open_pool else LocalPool(decoder, num_processes)
    pending: deque[Callable[[], list[Sample | Reject]]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(chunk))
            if len(pending) > 2 * pool.size:
                yield from pending.popleft()()
        while pending:
            yield from pending.popleft()()
    finally:
        pool.close()


class LocalPool:
    """Processes of this machine, started afresh: the caller may run threads, which a fork would not survive."""

    def __init__(self, decoder: Decoder, size: int):
        self.size = size
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(size, context, initializer=_start_worker, initargs=(decoder,))

    def submit(self, records: list[Record]) -> Callable[[], list[Sample | Reject]]:
        """Begins to decode `records`."""
        return self._pool.submit(_decode_chunk, records).result

    def close(self) -> None:
        """Waits for the tasks that run, drops the others."""
        self._pool.shutdown(wait=True, cancel_futures=True)


_worker_decoder: Decoder | None = None  # in a worker process: what its tasks call


def _start_worker(decoder: Decoder) -> None:
    global _worker_decoder
    _worker_decoder = decoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A killed parent leaves no orphans: its workers would wait for tasks for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _decode_chunk(records: list[Record]) -> list[Sample | Reject]:
    assert _worker_decoder is not None
    return decode_chunk(_worker_decoder, records)


def decode_chunk(decoder: Decoder, records: list[Record]) -> list[Sample | Reject]:
    """One task of a pool."""
    return [decoder(record) for record in records]
