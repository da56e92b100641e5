"""Captions as tokens: words of the training captions by frequency; 0 pads, 1 stands for a word never seen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2
MAX_VOCABULARY = 8192
MAX_WORDS = 32  # of a caption; what follows is cut
WORD = re.compile(r"\w+")


def words(caption: str) -> list[str]:
    """The caption's words in lower case, without punctuation."""
    return WORD.findall(caption.lower())


def build_vocabulary(counts: Mapping[str, int]) -> tuple[str, ...]:
    """The most frequent of the counted words first, equally frequent ones by alphabet; at most MAX_VOCABULARY."""
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:MAX_VOCABULARY])


def encode(captions: Sequence[str], vocabulary: tuple[str, ...], num_words: int) -> NDArray[np.int64]:
    """Tokens int64 [N, num_words] of N captions, padded or cut."""
    number = _numbers(vocabulary)
    tokens = np.full((len(captions), num_words), PADDING, np.int64)
    for row, caption in zip(tokens, captions, strict=True):
        known = [number.get(word, UNKNOWN) for word in words(caption)[:num_words]]
        row[: len(known)] = known
    return tokens


def alike(captions: Tensor) -> Tensor:
    """Bool [B, B]: which samples share a caption, word for word; captions int64 [B, K, L] of K a sample."""
    equal = captions[:, None, :, None] == captions[None, :, None, :]  # [B, B, K, K, L]
    return equal.all(-1).flatten(2).any(-1)


@lru_cache(maxsize=4)
def _numbers(vocabulary: tuple[str, ...]) -> dict[str, int]:
    return {word: number for number, word in enumerate(vocabulary, FIRST_WORD)}
