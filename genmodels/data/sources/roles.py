"""Labels, attributes, captions and groups, brought together with the records that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from genmodels.data.fields import Record, Reject

R = TypeVar("R", bound=Record)


class Roles(NamedTuple):
    """What is said of the images, by file. None: nothing of the kind is said of any."""

    attributes: dict[str, dict[str, int]]  # by name
    labels: dict[str, str] | None
    captions: dict[str, tuple[str, ...]] | None
    groups: dict[str, str] | None
    split_by: str | None  # the column that names the groups
    words: list[str]  # which columns have a role, as the log shows it

    def described(self, records: Sequence[R], rejects: list[Reject]) -> list[R]:
        """The records with all that is said of them; what lacks a thing that others have goes to `rejects`."""
        found = []
        for record in map(self._described, records):
            if reason := self._missing(record):
                rejects.append(Reject(record.file, reason))
            else:
                found.append(record)
        return found

    def _described(self, record: R) -> R:
        file = record.file
        return replace(
            record,
            label=self.labels.get(file) if self.labels is not None else record.label,
            attributes={name: of[file] for name, of in self.attributes.items() if file in of} or None,
            captions=(self.captions or {}).get(file, ()),
            group=(self.groups or {}).get(file),
        )

    def _missing(self, record: Record) -> str | None:
        if self.captions is not None and not record.captions:
            return "no caption"
        if len(record.attributes or ()) < len(self.attributes):
            return "no attributes"
        if self.labels is not None and record.label is None:
            return "no label"
        return f"no {self.split_by}" if self.groups is not None and record.group is None else None
