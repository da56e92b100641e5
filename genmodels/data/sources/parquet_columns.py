"""The columns of a Parquet file that describe its images: classes, captions, attributes, groups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genmodels.data.captions import words
from genmodels.data.sources.columns import CAPTION_COLUMNS, Named, no_column
from genmodels.data.sources.told import Told

LABEL_COLUMNS = ("label", "class")


def tell(
    told: Told,
    parquet: pq.ParquetFile,
    files: Sequence[str],
    named: Named,
    where: str,
) -> None:
    """Adds what the file says of its rows, which `files` names in order, to what is told of all images.

    ValueError of one line where a column is missing, or holds lists and such.
    """
    schema = parquet.schema_arrow
    plain = [field.name for field in schema if _is_plain(field.type)]
    wanted = named.columns()
    for name, setting in wanted.items():
        if name not in schema.names and not (setting == "attributes" and name.partition("=")[0] in schema.names):
            raise no_column(setting, name.partition("=")[0], plain, where)
    default = None if named.label else next((name for name in LABEL_COLUMNS if name in schema.names), None)
    for name in {*(wanted.keys() & set(schema.names)), *([default] if default else [])}:
        if name not in plain:
            kind = schema.field(name).type
            raise ValueError(f"{wanted.get(name, 'label')}: column {name!r} of {where} holds {kind}, no plain values")

    def column(name: str) -> dict[str, str]:
        values = parquet.read(columns=[name], use_threads=False).column(0).to_pylist()
        texts = _texts(values, _class_names(schema, name))
        return {file: text for file, text in zip(files, texts, strict=True) if text}

    if default:
        told.labels |= column(default)
    for name in plain:
        if named.attributes is None and name not in (default, *wanted) and _is_whole(schema.field(name).type):
            told.attributes[name] |= column(name)
        elif name in wanted:
            told.values[name] |= column(name)
    captions = next(
        (name for name in CAPTION_COLUMNS if name in schema.names and _is_text(schema.field(name).type)), None
    )
    if captions:
        found = parquet.read(columns=[captions], use_threads=False).column(0).to_pylist()
        told.captions |= {
            file: several for file, value in zip(files, found, strict=True) if (several := _captions(value))
        }


def _is_plain(kind: pa.DataType) -> bool:
    return _is_whole(kind) or bool(pa.types.is_floating(kind)) or _is_string(kind)


def _is_whole(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_string(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_text(kind: pa.DataType) -> bool:
    """Strings, or lists of them."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return _is_string(kind.value_type if is_list else kind)


def _captions(value: str | list[str | None] | None) -> tuple[str, ...]:
    several = [value] if isinstance(value, str) else value or []
    return tuple(caption.strip() for caption in several if caption and words(caption))


def _texts(values: list[Any], names: list[str]) -> list[str]:
    """Values as a table's cells hold them; numbers of classes by `names`, where there are any."""
    if names:
        return [names[value] if isinstance(value, int) and 0 <= value < len(names) else "" for value in values]
    return ["" if value is None else str(int(value) if isinstance(value, bool) else value).strip() for value in values]


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """The names that Hugging Face's metadata give to the numbers of a column."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about["info"]["features"][column]["names"]
        "".join(names).encode()
    except (ValueError, KeyError, TypeError, RecursionError):  # no such metadata, or nothing that could be names
        return []
    return list(names)
