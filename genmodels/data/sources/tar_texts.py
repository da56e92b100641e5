"""What the .cls, .txt and .json of a WebDataset sample say of its image."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from genmodels.data.captions import words
from genmodels.data.sources.columns import BINARY
from genmodels.data.sources.told import Told

TEXTS = ("cls", "txt", "json")
LABELS, CAPTIONS = ("label", "class"), ("caption", "captions", "text")  # keys of a .json, by preference


@dataclass
class Said:
    """What the texts of a sample say."""

    label: str | None = None
    captions: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)  # further ones of the .json

    def note(self, told: Told, wanted: Collection[str], file: str) -> None:
        """Adds it to what is told of all images; of further values those of `wanted` names."""
        if self.label:
            told.labels[file] = self.label
        if self.captions:
            told.captions[file] = self.captions
        for name, value in self.attributes.items():
            told.attributes[name][file] = value
        for name, value in self.values.items():
            column = told.values[name]  # every name is a choice that a message may list
            if name in wanted and value:
                column[file] = value


def read_texts(texts: Mapping[str, str | None]) -> Said:
    """What a sample's texts say: .cls and .txt before .json. ValueError says why they cannot be used."""
    if None in texts.values():
        raise ValueError("its text is not UTF-8")
    said = _of_json(texts["json"] or "") if "json" in texts else Said()
    if "cls" in texts:
        said.label = (texts["cls"] or "").strip()
    if "txt" in texts:
        said.captions = tuple(line.strip() for line in (texts["txt"] or "").splitlines() if words(line))
    return said


def _of_json(text: str) -> Said:
    try:
        values = json.loads(text)
        json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ValueError("its .json cannot be read") from None
    if not isinstance(values, dict):
        raise ValueError("its .json is no object")
    values = {name: value for name, value in values.items() if value is not None}  # null says nothing
    captions: Any = next((values[name] for name in CAPTIONS if name in values), [])
    captions = [captions] if isinstance(captions, str) else captions
    attributes = values.get("attributes", {})
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError("its captions are no text")
    if not isinstance(attributes, dict) or not all(_plain(value) in BINARY for value in attributes.values()):
        raise ValueError("its attributes are not 0 or 1")
    return Said(
        label=next((_plain(values[name]) for name in LABELS if name in values), None),
        captions=tuple(caption.strip() for caption in captions if words(caption)),
        attributes={name: str(BINARY[_plain(value)]) for name, value in attributes.items()},
        values={name: _plain(value) for name, value in values.items() if isinstance(value, str | int | float)},
    )


def _plain(value: Any) -> str:
    """A value as a table's cell holds it; nothing of lists and objects."""
    if isinstance(value, bool):
        return str(int(value))
    return str(value).strip() if isinstance(value, str | int | float) else ""
