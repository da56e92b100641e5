"""What a preparation has done so far: a line a sample on disk, and marks from which a killed one goes on.

Memory stays flat: the data set's tables are made of these lines at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genmodels.data.fields import Reject

JOURNAL = "journal.jsonl"
Place = tuple[int, int]  # offset and length of a payload in its tar


class Journal:
    """Append-only notes beside the shards in the making.

    `mark` is the last state that was saved with `save`, None at a new start. What was noted after it is forgotten.
    """

    def __init__(self, folder: Path, fingerprint: str):
        """Goes on with the journal in `folder` if it is of `fingerprint`; else begins one."""
        self.path = folder / JOURNAL
        self.mark, end = _last_mark(self.path, fingerprint)
        self._file = self.path.open("r+b" if self.mark else "wb")
        self._file.truncate(end)
        self._file.seek(end)
        if not self.mark:
            self._note({"fingerprint": fingerprint})

    def accept(self, row: dict[str, Any], places: dict[int, Place]) -> None:
        """Notes a sample that stands in its shards: the manifest's row, and by size where its payload lies."""
        self._note({"row": row, "places": places})

    def reject(self, reject: Reject) -> None:
        """Notes a sample that was left out."""
        self._note({"reject": reject})

    def save(self, state: dict[str, Any]) -> None:
        """Makes all notes so far durable; a killed preparation goes on from the last `state` saved."""
        self._note({"mark": state})
        self._file.flush()
        os.fsync(self._file.fileno())

    def _note(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")

    def accepted(self, split: str | None = None) -> Iterator[tuple[dict[str, Any], dict[int, Place]]]:
        """Every sample accepted, of one split or of all, in order."""
        for note in self._notes():
            if "row" in note and split in (None, note["row"]["split"]):
                yield note["row"], {int(size): place for size, place in note["places"].items()}

    def rejects(self) -> Iterator[Reject]:
        """Every sample rejected, in order."""
        return (Reject(*note["reject"]) for note in self._notes() if "reject" in note)

    def _notes(self) -> Iterator[dict[str, Any]]:
        self._file.flush()
        with self.path.open("rb") as lines:
            yield from map(json.loads, lines)

    def close(self) -> None:
        """Lets go of the file, which stays."""
        self._file.close()

    def remove(self) -> None:
        """Ends the journal: its preparation is complete."""
        self.close()
        self.path.unlink()


def _last_mark(path: Path, fingerprint: str) -> tuple[dict[str, Any] | None, int]:
    """The last state that was saved under `fingerprint`, and where its line ends; (None, 0) without one."""
    mark, end = None, 0
    if not path.is_file():
        return mark, end
    with path.open("rb") as lines:
        for line in lines:
            try:
                note = json.loads(line)
            except ValueError:  # cut off in the middle
                break
            if note.get("fingerprint", fingerprint) != fingerprint:
                break
            if "mark" in note and line.endswith(b"\n"):
                mark, end = note["mark"], lines.tell()
    return mark, end
