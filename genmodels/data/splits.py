"""Which samples are held out: as the source says, by a hash of the content, or by groups that stay together."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING

from genmodels.data.fields import Record, Source

if TYPE_CHECKING:
    from genmodels.data.decode import Sample


def joined_groups(source: Source, records: list[Record]) -> dict[str, str]:
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
    """The records, each with a split: test when the hash of its group (see `joined_groups`) falls below `holdout`.

    Where holdout > 0 each side has one group at least; ValueError where there is one alone. What the source split
    stays as it is.
    """
    fractions = {group: fraction(hashed(f"split {group}").hex()) for group in joined.values()}
    order = sorted(fractions, key=lambda group: fractions[group])
    test = {group for group in order if fractions[group] < holdout}
    if holdout and len(order) == 1 and not all(record.split for record in records):
        what = "a single group" if len(joined) == 1 else f"{len(joined)} groups, joined to one by pictures they share"
        raise ValueError(f"split_by gives {what}: nothing can be held out; name another column, or set holdout to 0")
    if holdout:
        test = (test | set(order[:1])) - set(order[-1:])
    sides = {group: "test" if joined[group] in test else "train" for group in joined}
    return [replace(record, split=record.split or sides[record.group or ""]) for record in records]


def hashed(text: str) -> bytes:
    """Its sha256: an order that nothing but the text decides."""
    return hashlib.sha256(text.encode()).digest()


class Splitter:
    """Gives each sample the split that its record names, else test when the content's hash falls below `holdout`.

    So a sample keeps its split when others are added, and copies of one image share theirs. Where all hashes fall on
    one side, the image nearest to the other side goes there: with holdout > 0, two images are one of each. For that
    one image, with its copies, is held back until both sides are known (`mixed`).
    """

    def __init__(self, holdout: float, mixed: bool = False):
        self.holdout, self.mixed = holdout, mixed
        self.held: list[Sample] = []  # of the only side so far, the image nearest to the other
        self._only, self._several = "train", False

    def add(self, sample: Sample) -> list[tuple[str, Sample]]:
        """The samples whose (split, sample) is known now."""
        side = sample.record.split or ("test" if fraction(sample.sha256) < self.holdout else "train")
        if self.mixed or sample.record.split or not self.holdout:
            return [(side, sample)]
        if not self.held or sample.sha256 == self.held[0].sha256:
            self._only = side
            self.held.append(sample)
            return []
        if side != self._only:
            released, self.held, self.mixed = self.held, [], True
            return [*((self._only, each) for each in released), (side, sample)]
        self._several = True
        if (sample.sha256 < self.held[0].sha256) != (side == "train"):
            return [(side, sample)]
        released, self.held = self.held, [sample]
        return [(side, each) for each in released]

    def end(self) -> list[tuple[str, Sample]]:
        """The samples that are still held back."""
        side = "test" if self._several and self._only == "train" else "train"
        return [(side, each) for each in self.held]


def some(records: list[Record], num: int) -> list[Record]:
    """The first `num` records, of each split and domain that the source names its share, and one at least."""
    counts, seen, ranked = Counter(map(_part, records)), Counter[tuple[str | None, str | None]](), []
    for record in records:
        part = _part(record)
        ranked.append(((seen[part] + 0.5) / counts[part] if seen[part] else 0, record))
        seen[part] += 1
    return [record for _, record in sorted(ranked, key=itemgetter(0))[:num]]


def _part(record: Record) -> tuple[str | None, str | None]:
    return (record.split, record.domain) if record.split else (None, None)


def fraction(digest: str) -> float:
    """A hex digest as a number in [0, 1)."""
    return int(digest[:8], 16) / 2**32
