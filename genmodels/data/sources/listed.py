"""What every source of listed samples shares: all but finding them and reading one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from genmodels.data.fields import Record, Reject
from genmodels.data.sources.tree import Tree


@dataclass(frozen=True, slots=True)
class Piece(Record):
    """One sample inside a file that holds many."""

    container: str = ""  # that file, in the source
    place: tuple[int, int] = (0, 0)  # where in it: offset and size, or whatever else the source reads by


class ListedSource:
    """Samples that are known before any is read, of the files of a tree.

    `files` are all that the records come from and that were left out: what changes them changes the source.
    """

    def __init__(
        self,
        tree: Tree,
        records: Sequence[Record],
        rejects: Iterable[Reject],
        files: Iterable[str],
        found: str,
        attributes: Iterable[str] = (),
    ):
        self.tree, self._records, self._files, self._found = tree, records, tuple(files), found
        self.rejects = tuple(rejects)
        self.attributes = tuple(attributes)
        self.classes = tuple(sorted({record.label for record in records if record.label is not None}))
        self.domains = tuple(sorted({record.domain for record in records if record.domain is not None}))
        self.groups = tuple(sorted({record.group for record in records if record.group is not None}))

    def records(self) -> Iterator[Record]:
        """Every sample, sorted by path, or in the order of its file."""
        return iter(self._records)

    def describe(self) -> str:
        """One line for the log."""
        return self._found

    def fingerprint(self) -> str:
        """Hash of all files' names, sizes and times of change."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(b"%s\0%s\0" % (os.fsencode(file), self.tree.stamp(file)))
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, object]:
        return {"tree": self.tree}  # all that `read` needs in a worker process
