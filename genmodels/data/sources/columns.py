"""Columns that describe images, from whatever table or archive they come, and those that a configuration names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from genmodels.data.sources.roles import Roles
from genmodels.text import nearest

IMAGE_COLUMNS = ("file", "image", "filename", "file_name", "image_id")
CAPTION_COLUMNS = ("caption", "text", "description")
BINARY = {"0": 0, "1": 1, "-1": 0}
SPELLINGS = {"true": "1", "false": "0", "1.0": "1", "0.0": "0", "-1.0": "-1"} | {cell: cell for cell in BINARY}
MAX_VALUES = 40  # of a column that becomes one attribute a value
MAX_LISTED = 12  # choices of an error


class Named(NamedTuple):
    """The settings of a data set that name columns, as in the configuration."""

    attributes: Sequence[str] | None = None
    label: str | None = None
    split_by: str | None = None

    def columns(self) -> dict[str, str]:
        """Every name that they may mean a column by, with the setting; of NAME=VALUE both readings."""
        named = {name: "attributes" for each in self.attributes or () for name in (each.partition("=")[0], each)}
        return (
            named
            | ({self.label: "label"} if self.label else {})
            | ({self.split_by: "split_by"} if self.split_by else {})
        )


class Row(NamedTuple):
    """What a table says of one image."""

    number: int
    file: str  # the image's path in the source
    cells: list[str]  # in the order of the table's columns


class Table(NamedTuple):
    """A table whose rows belong to images of the source."""

    name: str  # relative to the source
    where: str  # as messages show it
    columns: list[str]
    rows: list[Row]
    repeats: bool  # several rows of one image

    def column(self, name: str) -> dict[str, str]:
        """The column's value of each image; empty cells are left out. ValueError where two rows disagree."""
        place, seen = self.columns.index(name), dict[str, Row]()
        values = {row.file: row.cells[place] for row in self.rows if row.cells[place]}
        for row in self.rows if self.repeats else ():
            first = seen.setdefault(row.file, row)
            if first.cells[place] != row.cells[place]:
                what = f"{row.cells[place]!r}, but row {first.number} says {first.cells[place]!r} of the same image"
                raise fault(self.where, row.number, name, what)
        return values

    def wrong_cell(self, name: str, cells: Collection[str], what: str) -> ValueError:
        """What is wrong with the first of these cells of a column."""
        place = self.columns.index(name)
        row = next(row for row in self.rows if row.cells[place] in cells)
        return fault(self.where, row.number, name, f"{row.cells[place]!r} is {what}")


class Values(NamedTuple):
    """A table by columns: what each says of each image that it says anything of, by file."""

    by_column: dict[str, dict[str, str]]

    @property
    def columns(self) -> list[str]:
        """The columns' names."""
        return list(self.by_column)

    def column(self, name: str) -> dict[str, str]:
        """The column's value of each image."""
        return self.by_column[name]


class Columns:
    """A table of attributes, and another one; either may be missing. `where` is how messages call them."""

    def __init__(self, attribute_table: Table | Values | None, other: Table | Values | None, where: str):
        self._attribute_table, self._where = attribute_table, where
        self._tables = [table for table in (attribute_table, other) if table]

    def roles(self, named: Named, captions: dict[str, tuple[str, ...]] | None) -> Roles:
        """The columns that the configuration names, in their roles."""
        label, split_by = named.label, named.split_by
        return Roles(
            attributes=self.attributes(named.attributes),
            labels=self.column(label, "label") if label else None,
            captions=captions,
            groups=self.column(split_by, "split_by") if split_by else None,
            split_by=split_by,
            words=[f"class = {label}"] * bool(label) + [f"split by {split_by}"] * bool(split_by),
        )

    def attributes(self, wanted: Sequence[str] | None) -> dict[str, dict[str, int]]:
        """By attribute's name, 0 or 1 of each image whose cell is not empty.

        `wanted` None: every column of the attribute table that holds 0 and 1, or -1 and 1, alone. Otherwise as
        named: such a column; another column, which becomes one attribute NAME_VALUE a value; NAME=VALUE, one of these.
        ValueError where a column of a table is of 0 and 1 but for a few cells, and where a named one is empty.
        """
        if wanted is None:
            table = self._attribute_table
            names = [name for name in table.columns if name not in IMAGE_COLUMNS] if table else []
            return {name: values for name in names if (values := self._binary(name))}
        found: dict[str, dict[str, int]] = {}
        for name in wanted:
            for attribute, values in self._chosen(name).items():
                if attribute in found:
                    raise ValueError(f"attributes: {attribute!r} comes twice in {', '.join(wanted)}")
                found[attribute] = values
        return found

    def _chosen(self, name: str) -> dict[str, dict[str, int]]:
        column, equals, value = name.partition("=")
        if not equals or name in self.columns:
            if binary := self._binary(name):
                return {name: binary}
            if not (values := self.column(name, "attributes")):
                raise ValueError(f"attributes: column {name!r} is empty")
            choices = sorted(set(values.values()), key=_by_number)
            if len(choices) > MAX_VALUES:
                raise ValueError(
                    f"attributes: column {name!r} has {len(choices)} values, at most {MAX_VALUES} become attributes; "
                    f"name some, as {name}={choices[0]}"
                )
            return {f"{name}_{choice}": _is(values, choice) for choice in choices}
        values = self.column(column, "attributes")
        if value not in (choices := sorted(set(values.values()), key=_by_number)):
            raise ValueError(f"attributes: no {value!r} in column {column!r}; choices: {listed(choices)}")
        return {f"{column}_{value}": _is(values, value)}

    def column(self, name: str, setting: str) -> dict[str, str]:
        """A column's value of each image, from whichever table has it; `setting` is what asks for it."""
        return self._table(name, setting).column(name)

    def _table(self, name: str, setting: str) -> Table | Values:
        for table in self._tables:
            if name in table.columns:
                return table
        raise no_column(setting, name, self.columns, self._where)

    def _binary(self, name: str) -> dict[str, int]:
        """0 or 1 of each image; empty where the column holds anything else."""
        table = self._table(name, "attributes")
        values = table.column(name)
        counts = Counter(values.values())
        kinds = {cell: SPELLINGS.get(cell.lower(), "") for cell in counts}
        wrong_of = {low: {cell for cell, kind in kinds.items() if kind not in (low, "1")} for low in ("0", "-1")}
        low = min(wrong_of, key=lambda low: sum(counts[cell] for cell in wrong_of[low]))
        if not (wrong := wrong_of[low]):
            return {file: BINARY[kinds[cell]] for file, cell in values.items()}
        is_slip = {low, "1"} <= set(kinds.values()) and 10 * sum(counts[cell] for cell in wrong) < len(values)
        if is_slip and isinstance(table, Table):
            raise table.wrong_cell(name, wrong, f"neither {low} nor 1 as the others; if it is meant, name {name}=VALUE")
        return {}

    @property
    def columns(self) -> list[str]:
        """Every column of every table."""
        return [column for table in self._tables for column in table.columns]


def fault(path: str, row: int, column: str | None, what: str) -> ValueError:
    """What is wrong with a cell, a row or a table, as one line."""
    message = f"{path} row {row}{f', column {column}' if column else ''}: {what}"
    return ValueError(" ".join(message.encode("utf-8", "backslashreplace").decode().split()))


def no_column(setting: str, name: str, columns: Sequence[str], where: str) -> ValueError:
    """A setting names a column that `where` has not, as one line with the choices."""
    choices = [choice for choice in columns if choice not in IMAGE_COLUMNS]
    return ValueError(f"{setting}: no column {name!r}{nearest(name, choices)} in {where}; choices: {listed(choices)}")


def listed(names: Sequence[str]) -> str:
    """Some names, and whether there are more."""
    return ", ".join(names[:MAX_LISTED]) + (" ..." if len(names) > MAX_LISTED else "") or "none"


def _is(values: Mapping[str, str], wanted: str) -> dict[str, int]:
    return {file: int(value == wanted) for file, value in values.items()}


def _by_number(text: str) -> tuple[float, str]:
    """2 before 10; words after numbers, by alphabet."""
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text
