"""Tables beside the images of a folder: captions, attributes, and columns that name a class or a group.

captions.csv, captions.jsonl   an image column and a caption column; several rows an image are several captions
a .txt beside each image       a line a caption
attributes.csv                 an image column; columns of 0/1, -1/1 or True/False are attributes
list_attr.txt                  CelebA's layout: the count, the names, then a file and its values a line

Whatever is wrong is a ValueError of one line that names file, row and column. Rows count from 1, the header too.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from genmodels.data.captions import words
from genmodels.data.sources.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, Columns, Row, Table, fault, listed
from genmodels.data.sources.tree import Tree
from genmodels.text import nearest

UNDECODABLE = "utf-8", "surrogateescape"  # bytes that are no UTF-8 are found where they stand, cell by cell


class Tables(Columns):
    """All that a folder's tables say of its images.

    `files` are the usable images and `refused` the others, with the reason, as paths in the folder; a row of a
    refused image says nothing. `used` are the files that were read.
    """

    def __init__(self, tree: Tree, files: Sequence[str], refused: Mapping[str, str], not_an_image: str):
        self._tree, self.used = tree, list[str]()
        self._files, self._refused, self._not_an_image = files, refused, not_an_image
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for file in (*files, *refused):
            self._by_name[os.path.basename(file)].append(file)
        self._known = {*files, *refused}
        self._caption_table = self._first(CAPTION_TABLES)
        self._binary_table = self._first(ATTRIBUTE_TABLES)
        _check_unique(self._binary_table)
        if self._binary_table and ATTRIBUTE_TABLES[self._binary_table.name] is _celeba:
            _check_signs(self._binary_table)
        names = [table.name for table in (self._binary_table, self._caption_table) if table]
        nowhere = f"{tree.name}, which has no table ({', '.join(ATTRIBUTE_TABLES)})"
        super().__init__(self._binary_table, self._caption_table, " or ".join(names) or nowhere)
        self._sidecars = {} if self._caption_table else self._find_sidecars()

    def captions(self) -> dict[str, tuple[str, ...]] | None:
        """The captions of each image that has any; None where the folder has none at all."""
        found = {file: lines for file, text in self._sidecars.items() if (lines := self._lines(text))}
        self._sidecars = {file: self._sidecars[file] for file in found}
        if found:
            return found
        if not (table := self._caption_table):
            return None
        place = table.columns.index(_one_of(table.where, table.columns, CAPTION_COLUMNS, "caption"))
        captions: dict[str, list[str]] = defaultdict(list)
        rows: dict[tuple[str, ...], int] = {}
        for row in table.rows:
            if (first := rows.setdefault((row.file, *row.cells), row.number)) != row.number:
                raise fault(table.where, row.number, None, f"repeats row {first}")
            if words(row.cells[place]):
                captions[row.file].append(row.cells[place])
        return {file: tuple(found) for file, found in captions.items()}

    def describe(self, attributes: Iterable[str], num_captions: int) -> list[str]:
        """What was found, in a few words each."""
        found = []
        if self._caption_table or self._sidecars:
            name = self._caption_table.name if self._caption_table else "a .txt an image"
            found.append(f"{name} with {num_captions:,} captions")
        if self._binary_table:
            found.append(f"{self._binary_table.name} with attributes {', '.join(attributes) or 'none'}")
        ignored = [name for name in (*CAPTION_TABLES, *ATTRIBUTE_TABLES) if self._is_there(name)]
        ignored = [name for name in ignored if name not in self.used]
        return found + ([f"ignored: {', '.join(ignored)}"] if ignored else [])

    def _is_there(self, name: str) -> bool:
        if name in self._refused and self._refused[name] != self._not_an_image:
            raise ValueError(f"{self._at(name)}: {self._refused[name]}")
        return name in self._refused

    def _first(self, readers: Mapping[str, Reader]) -> Table | None:
        """The first of these tables that the folder has."""
        for name, read in readers.items():
            if self._is_there(name):
                self.used.append(name)
                return self._read(name, read)
        return None

    def _find_sidecars(self) -> dict[str, str]:
        """The .txt of each image; an image's own text is a file beside it with its stem."""
        found = {}
        for file in self._files:
            text = f"{os.path.splitext(file)[0]}.txt"
            if self._refused.get(text) == self._not_an_image:
                found[file] = text
                self.used.append(text)
        return found

    def _at(self, name: str) -> str:
        return f"{self._tree.name}/{name}"

    def _text(self, name: str) -> str:
        return self._tree.read(name).removeprefix(b"\xef\xbb\xbf").decode(*UNDECODABLE)

    def _lines(self, name: str) -> tuple[str, ...]:
        """The captions of a .txt. Numbers alone are none: detection sets have boxes beside their images."""
        lines = self._text(name).splitlines()
        for number, line in enumerate(lines, 1):
            _check_text(self._at(name), number, None, line)
        return tuple(line.strip() for line in lines if any(map(str.isalpha, line)))

    def _read(self, table: str, read: Reader) -> Table:
        """The table with an image of the source for every row; rows of refused images are dropped."""
        path = self._at(table)
        lines = read(path, self._text(table))
        _, columns = next(lines, (1, []))
        for column in columns:
            _check_text(path, 1, None, column)
        if len(set(columns)) < len(columns):
            raise fault(path, 1, None, f"two columns have one name: {listed(columns)}")
        name = _one_of(path, columns, IMAGE_COLUMNS, "image")
        place, rows = columns.index(name), []
        for number, cells in lines:
            if len(cells) != len(columns):
                what = f"{len(cells)} values for {len(columns)} columns ({listed(columns)}); quote values with commas"
                raise fault(path, number, None, what)
            for column, cell in () if "".join(cells).isascii() else zip(columns, cells, strict=True):
                _check_text(path, number, column, cell)
            file = self._find(path, number, name, cells[place])
            if file not in self._refused:
                rows.append(Row(number, file, cells))
        return Table(table, path, columns, rows, repeats=len({row.file for row in rows}) < len(rows))

    def _find(self, path: str, number: int, column: str, name: str) -> str:
        """The image that a row means: by its path in the source, or by its name where only one image has it."""
        plain = os.path.normpath(name)
        if os.path.isabs(plain) or plain.split("/")[0] == "..":
            raise fault(path, number, column, f"{name!r} is no path inside the folder")
        if plain in self._known:
            return plain
        found = self._by_name.get(plain, [])
        if len(found) > 1:
            raise fault(path, number, column, f"{name!r} is the name of several images: {listed(sorted(found))}")
        if not found:
            close = nearest(name, islice(self._files if "/" in name else self._by_name, 2000))
            raise fault(path, number, column, f"no image {name!r} in {self._tree.name}{close}")
        return found[0]


def _check_unique(table: Table | None) -> None:
    if not table or not table.repeats:
        return
    seen: dict[str, int] = {}
    for row in table.rows:
        if (first := seen.setdefault(row.file, row.number)) != row.number:
            raise fault(table.where, row.number, None, f"{row.file!r} stands in row {first} already")


def _check_signs(table: Table) -> None:
    """CelebA's layout says of every image whether it has every attribute: -1 or 1, as some write it 0 or 1."""
    counts = Counter(cell for row in table.rows for cell in row.cells[1:])
    low = "0" if counts["0"] > counts["-1"] else "-1"
    if wrong := counts.keys() - {low, "1"}:
        row = next(row for row in table.rows if not wrong.isdisjoint(row.cells[1:]))
        name = next(name for name, cell in zip(table.columns[1:], row.cells[1:], strict=True) if cell in wrong)
        raise table.wrong_cell(name, wrong, f"neither {low} nor 1")


def _one_of(path: str, columns: Sequence[str], choices: Sequence[str], what: str) -> str:
    """The table's column of this meaning; the first where it has several."""
    for choice in choices:
        if choice in columns:
            return choice
    raise fault(path, 1, None, f"no column {what!r}; choices: {', '.join(choices)}; found: {listed(columns)}")


def _check_text(path: str, row: int, column: str | None, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise fault(path, row, column, "not UTF-8; save the file in that encoding") from None


# Files -> (row, cells); the first is the header

Lines = Iterator[tuple[int, list[str]]]
Reader = Callable[[str, str], Lines]  # a file's name for messages, its text


def _csv(path: str, text: str) -> Lines:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 0
    try:
        for number, cells in enumerate(reader, 1):
            if cells:
                yield number, [sys.intern(cell.strip()) for cell in cells]
    except csv.Error as error:
        raise fault(path, number + 1, None, str(error)) from None


def _jsonl(path: str, text: str) -> Lines:
    """Objects of equal keys; a list of captions becomes a row each."""
    columns: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise fault(path, number, None, f"no JSON ({error})") from None
        if not isinstance(values, dict):
            raise fault(path, number, None, "no JSON object")
        if not columns:
            columns = list(values)
            yield number, columns
        if missing := [column for column in columns if column not in values]:
            raise fault(path, number, missing[0], f"missing; found: {listed(list(values))}")
        several = next((c for c in columns if c in CAPTION_COLUMNS and isinstance(values[c], list)), None)
        for caption in values[several] if several else [None]:
            yield number, [_plain(caption if column == several else values[column]) for column in columns]


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else str(value).strip()


def _celeba(path: str, text: str) -> Lines:
    lines = text.splitlines()
    count, names = (lines + ["", ""])[:2]
    if not count.strip().isdigit():
        raise fault(path, 1, None, f"expected the number of images, got {count[:40]!r}")
    columns = names.split()
    yield 2, ["image", *columns]
    num = 0
    for number, line in enumerate(lines[2:], 3):
        if line.strip():
            num += 1
            yield number, [sys.intern(cell.strip()) for cell in line.rsplit(maxsplit=len(columns))]
    if num != int(count):
        raise fault(path, 1, None, f"says {int(count)} images, {num} follow")


CAPTION_TABLES: dict[str, Reader] = {"captions.csv": _csv, "captions.jsonl": _jsonl}
ATTRIBUTE_TABLES: dict[str, Reader] = {
    "attributes.csv": _csv,
    "list_attr.txt": _celeba,
    "list_attr_celeba.txt": _celeba,
}
