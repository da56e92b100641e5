"""Batches as a pure function of (seed, position): exact to resume, the same for any number of ranks and threads.

The stream of samples is the epochs' orders, one after the other. The global batch k holds the positions
start + k * batch_size and on, across the end of an epoch too, so each sample comes exactly once an epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmodels.data.cache import ShardCache
from genmodels.data.captions import encode
from genmodels.data.order import Stream
from genmodels.data.prefetch import Prefetcher, check_limit
from genmodels.data.reader import ShardReader, paired_ids
from genmodels.data.shards import open_shards
from genmodels.model import Batch, mix_seed
from genmodels.text import nearest

Field = Callable[
    [NDArray[np.int64], NDArray[np.bool_]], Tensor
]  # (sample numbers, which to mirror) -> a batch's values


class Loader(Iterator[Batch]):
    """The training split in batches, for ever; this rank's slice of each.

    A batch holds the `keys` asked for, on the CPU: `image`, `image_A`, `image_B` uint8 [B, C, H, W] (memory order
    HWC), `label` int64 [B], `attributes` float32 [B, A] of 0 and 1, `parts` float32 [B, P, 4],
    `caption` int64 [B, K, L] tokens of K captions, `group` int64 [B] (equal: say, the same drawing).
    Domain images are streams of their own, unpaired. `start` is the number of images shown before: a loader that
    starts there goes on exactly; after n batches the position is start + n * batch_size. A context manager; `close`
    ends its threads. Shards of a store come through `cache`, those of the next window ahead of time. With `digest`
    no other data set is read than the one that the run began with.

    ValueError names the key, size, domain or batch size that the data cannot serve, and a cache that is too small;
    DamagedData a file that was altered, and a data set that took the place of the one that was opened.
    """

    def __init__(
        self,
        folder: Path,
        keys: Sequence[str],
        image_size: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        mirror: bool = False,
        domain: str | None = None,
        prefetch: int = 3,
        num_threads: int = 1,
        pin_memory: bool = False,
        cache: ShardCache | None = None,
        digest: str | None = None,
    ):
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} does not divide by the number of workers, {world_size}")
        assert 0 <= rank < world_size and start >= 0
        self.batch_size, self.position = batch_size, start
        self._share = batch_size // world_size
        self._rank_start = start + rank * self._share
        self._mirror, self._pin_memory = mirror, pin_memory
        opened = _open_streams(Path(folder), keys, image_size, seed, domain, cache, digest)
        self._streams = [(stream, fields) for stream, _, fields in opened]
        self._readers = [reader for _, reader, _ in opened]
        if cache and any(reader.store for reader in self._readers):
            check_limit(cache, {shard for reader in self._readers for shard in reader.shards}, len(self._readers))
        self._ahead = Prefetcher([(stream, reader) for stream, reader, _ in opened], rank)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="loader")
        self._pending: deque[Future[Batch]] = deque()
        self._num_submitted, self._prefetch = 0, max(1, prefetch)

    def __next__(self) -> Batch:
        """The next batch; an error of a background thread is raised here."""
        while len(self._pending) < self._prefetch:
            self._submit()
        batch = self._pending.popleft().result()
        self._submit()
        self.position += self.batch_size
        return batch

    def _submit(self) -> None:
        first = self._rank_start + self._num_submitted * self.batch_size
        self._ahead.advance(first)
        self._pending.append(self._pool.submit(self._build, first))
        self._num_submitted += 1

    def _build(self, first: int) -> Batch:
        batch: Batch = {}
        for stream, fields in self._streams:
            ids = stream.ids(first, self._share)
            flip = stream.mirrored(first, self._share) if self._mirror else np.zeros(self._share, bool)
            batch |= {key: field(ids, flip) for key, field in fields.items()}
        return {key: value.pin_memory() for key, value in batch.items()} if self._pin_memory else batch

    def close(self) -> None:
        """Ends the threads; waits for the batches being built, drops the others."""
        for reader in self._readers:
            reader.close()
        self._ahead.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def _open_streams(
    folder: Path,
    keys: Sequence[str],
    size: int,
    seed: int,
    domain: str | None,
    cache: ShardCache | None,
    digest: str | None,
) -> list[tuple[Stream, ShardReader, dict[str, Field]]]:
    """The streams that `keys` need, each with the fields it serves."""
    manifest = open_shards(folder)
    spec, digest = manifest.spec, digest or manifest.spec.digest  # several readers, of one data set
    domains = {f"image_{name}": name for name in spec.domains}
    offered = [key for key in spec.keys if key in FIELDS or key in domains]
    for key in keys:
        if key not in offered:
            raise ValueError(
                f"data set {spec.name!r} has no {key!r}{nearest(key, offered)}; it offers: {', '.join(offered)}"
            )
    shared = [key for key in keys if key not in domains]
    if shared and "image" not in keys and len(shared) < len(keys):
        raise ValueError(f"{shared[0]!r} describes 'image', not {', '.join(domains)}; ask for 'image' too")
    streams = []
    if shared:
        reader = _open_reader(folder, size, domain, cache, digest)
        streams.append((Stream(reader.num_per_shard, seed), reader, {key: FIELDS[key](reader) for key in shared}))
    for number, (key, name) in enumerate(domains.items(), 1):
        if key in keys:
            reader = _open_reader(folder, size, name, cache, digest)
            stream = Stream(reader.num_per_shard, mix_seed(seed, number))
            streams.append((stream, reader, {key: _image_field(reader)}))
    return streams


def _open_reader(folder: Path, size: int, domain: str | None, cache: ShardCache | None, digest: str) -> ShardReader:
    reader = ShardReader(folder, "train", size, domain, cache, digest)
    if not reader.num:
        raise ValueError(f"{folder} has no training images" + (f" of domain {domain}" if domain else ""))
    return reader


def _image_field(reader: ShardReader) -> Field:
    def images(ids: NDArray[np.int64], flip: NDArray[np.bool_]) -> Tensor:
        pixels = reader.read(ids)
        if flip.any():
            whole = pixels.view(f"V{reader.spec.channels}")[..., 0]  # [B, H, W]: moves pixels, not bytes
            whole[flip] = whole[flip][:, :, ::-1]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    return images


def _label_field(reader: ShardReader) -> Field:
    labels = reader.labels
    return lambda ids, flip: torch.from_numpy(labels[ids])


def _group_field(reader: ShardReader) -> Field:
    groups = reader.groups
    return lambda ids, flip: torch.from_numpy(groups[ids])


def _attribute_field(reader: ShardReader) -> Field:
    attributes = reader.attributes
    return lambda ids, flip: torch.from_numpy(attributes[ids])


def _part_field(reader: ShardReader) -> Field:
    boxes = reader.parts

    def parts(ids: NDArray[np.int64], flip: NDArray[np.bool_]) -> Tensor:
        chosen = boxes[ids]
        chosen[flip] = chosen[flip][:, :, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
        return torch.from_numpy(chosen)

    return parts


def _caption_field(reader: ShardReader) -> Field:
    spec = reader.spec
    chosen = [each[i % len(each)] for each in reader.captions for i in range(spec.num_captions)]
    tokens = encode(chosen, spec.vocabulary, spec.num_words).reshape(reader.num, spec.num_captions, spec.num_words)
    return lambda ids, flip: torch.from_numpy(tokens[ids])


# A new key of the batch is one line here.
FIELDS: dict[str, Callable[[ShardReader], Field]] = {
    "image": _image_field,
    "label": _label_field,
    "attributes": _attribute_field,
    "parts": _part_field,
    "caption": _caption_field,
    "group": _group_field,
}


def read_split(
    folder: Path,
    split: str,
    image_size: int,
    num: int,
    domain: str | None = None,
    cache: ShardCache | None = None,
    digest: str | None = None,
) -> tuple[Batch, bool]:
    """The first samples of a split, at most `num`, with every key that the data set offers; in order of storage.

    Where no `domain` of several is chosen, `image` has its share of each. The second value says whether image_A and
    image_B are aligned, image by image: the held-out files of both have the same names, and those alone are read.
    """
    reader = ShardReader(folder, split, image_size, domain, cache, digest)
    ids = reader.some(num)
    batch = {key: FIELDS[key](reader)(ids, np.zeros(len(ids), bool)) for key in FIELDS if key in reader.spec.keys}
    readers = {name: ShardReader(folder, split, image_size, name, cache, digest) for name in reader.spec.domains}
    ids_of = {name: np.arange(each.num) for name, each in readers.items()}
    paired = False
    if split == "test" and len(readers) == 2:
        pairs = paired_ids(*readers.values())
        if paired := len(pairs[0]) > 0:
            ids_of = dict(zip(readers, pairs, strict=True))
    for name, each in readers.items():
        chosen = ids_of[name][:num]
        batch[f"image_{name}"] = _image_field(each)(chosen, np.zeros(len(chosen), bool))
    return batch, paired
