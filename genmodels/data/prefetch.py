"""Fetches shards of a store into the cache before the batches need them: the order of samples says which come next."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from genmodels.data.cache import ShardCache
from genmodels.data.order import WINDOW, Stream
from genmodels.data.reader import ShardReader
from genmodels.data.shards import ShardFile

NUM_THREADS = 4  # fetches under way; each holds a block in memory


def check_limit(cache: ShardCache, shards: Iterable[ShardFile], num_streams: int) -> None:
    """ValueError unless the cache holds the window in use and the next, of every stream, whatever the order."""
    most = 2 * WINDOW * num_streams
    least = sum(sorted((shard.bytes for shard in shards), reverse=True)[:most])
    if least > cache.limit_bytes:
        raise ValueError(
            f"{cache.folder} may hold {cache.limit_bytes / 1e9:g} GB, too little for the shards that are in use at"
            f" once: compute.cache_gb must be at least {math.ceil(least / 1e6) / 1e3:g}"
        )


class Prefetcher:
    """Background threads that fetch the window of shards that a position lies in, and the next one."""

    def __init__(self, streams: Sequence[tuple[Stream, ShardReader]], rank: int):
        self._streams = [(stream, reader) for stream, reader in streams if reader.store]
        self._rank = rank
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="loader-ahead")
        self._windows: list[tuple[int, int]] = []
        self._wanted: deque[tuple[ShardReader, ShardFile]] = deque()
        self._running: list[Future[None]] = []

    def advance(self, position: int) -> None:
        """Says where the batches are; returns at once."""
        if not self._streams:
            return
        windows = [stream.window(position) for stream, _ in self._streams]
        if windows != self._windows:
            self._wanted = deque(self._coming(windows))
            self._windows = windows
        self._running = [future for future in self._running if not future.done()]
        while self._wanted and len(self._running) < NUM_THREADS:
            self._running.append(self._pool.submit(self._fetch, *self._wanted.popleft()))

    def _coming(self, windows: list[tuple[int, int]]) -> list[tuple[ShardReader, ShardFile]]:
        coming = []
        for ahead in (0, 1):
            for (stream, reader), (epoch, window) in zip(self._streams, windows, strict=True):
                numbers = stream.shards(epoch, window + ahead)
                first = self._rank % len(numbers)  # ranks of one machine begin with different shards
                coming += [(reader, reader.shards[number]) for number in numbers[first:] + numbers[:first]]
        return coming

    def _fetch(self, reader: ShardReader, shard: ShardFile) -> None:
        assert reader.store and reader.cache
        if not reader.cache.prefetch(reader.store, shard):
            self._wanted.append((reader, shard))  # once more with the next batch: by then others are done with theirs

    def close(self) -> None:
        """Ends the threads, and what they fetch: close the readers first."""
        self._pool.shutdown(wait=True, cancel_futures=True)
