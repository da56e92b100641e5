"""The order of samples as a pure function of (seed, epoch, position), the same for local files and for a store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from genmodels.model import mix_seed

WINDOW = 16  # shards; within so many the samples are shuffled


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, window: int = WINDOW) -> NDArray[np.int64]:
    """The order of an epoch: sample numbers, int64 [N], each of them once.

    The shards are permuted; then samples are shuffled within every `window` consecutive shards, so that a cache of
    `window` shards streams well. A pure function: ranks of raw Philox words (Salmon et al. 2011).
    """
    sizes = np.asarray(shard_sizes, np.int64)
    starts = np.cumsum(sizes) - sizes
    words = np.random.Philox(key=mix_seed(seed, epoch)).random_raw(len(sizes) + int(sizes.sum()))
    shards = shard_order(len(sizes), seed, epoch)
    order = np.concatenate([np.arange(starts[shard], starts[shard] + sizes[shard]) for shard in shards])
    words, done = words[len(sizes) :], 0
    for first in range(0, len(shards), window):
        num = int(sizes[shards[first : first + window]].sum())
        ranks = np.argsort(words[done : done + num], kind="stable")
        order[done : done + num] = order[done : done + num][ranks]
        done += num
    return order


def shard_order(num_shards: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The shards as an epoch takes them, int64 [S]."""
    return np.argsort(np.random.Philox(key=mix_seed(seed, epoch)).random_raw(num_shards), kind="stable")


class Stream:
    """An endless sequence of sample numbers over shards, addressed by position."""

    def __init__(self, shard_sizes: Sequence[int], seed: int):
        self.num, self._sizes, self._seed = sum(shard_sizes), np.asarray(shard_sizes, np.int64), seed
        self._order = lru_cache(maxsize=2)(lambda epoch: epoch_order(shard_sizes, seed, epoch))
        self._shards = lru_cache(maxsize=2)(lambda epoch: shard_order(len(shard_sizes), seed, epoch))

    def ids(self, first: int, num: int) -> NDArray[np.int64]:
        """The numbers at positions first .. first + num - 1."""
        parts = []
        while num:
            epoch, offset = divmod(first, self.num)
            part = self._order(epoch)[offset : offset + num]
            parts.append(part)
            first, num = first + len(part), num - len(part)
        return np.concatenate(parts)

    def mirrored(self, first: int, num: int) -> NDArray[np.bool_]:
        """A fair coin for each of the positions first .. first + num - 1."""
        block, skip = divmod(first, 4)  # a Philox block is four words
        words = np.random.Philox(key=mix_seed(self._seed, -1), counter=block).random_raw(skip + num)
        return (words[skip:] >> np.uint64(63)).astype(bool)

    def window(self, position: int) -> tuple[int, int]:
        """The epoch and the number of the window that hold a position."""
        epoch, offset = divmod(position, self.num)
        ends = np.cumsum(self._sizes[self._shards(epoch)])
        return epoch, int(np.searchsorted(ends, offset, side="right")) // WINDOW

    def shards(self, epoch: int, window: int) -> list[int]:
        """A window's shards, as indices into `shard_sizes`; past an epoch's last window, the next epoch's first."""
        if window * WINDOW >= len(self._sizes):
            epoch, window = epoch + 1, 0
        return self._shards(epoch)[window * WINDOW : (window + 1) * WINDOW].tolist()
