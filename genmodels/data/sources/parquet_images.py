"""Images inside Parquet files: a column of bytes, or of Hugging Face's {bytes, path}, and others that describe them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genmodels.data.fields import Record
from genmodels.data.sources.columns import Named, listed
from genmodels.data.sources.listed import ListedSource, Piece
from genmodels.data.sources.names import keys, named_splits, others
from genmodels.data.sources.parquet_columns import tell
from genmodels.data.sources.spool import Spool
from genmodels.data.sources.told import Told, summary
from genmodels.data.sources.tree import Tree, open_file

IMAGE_COLUMNS = ("image", "img", "bytes", "image_bytes", "png", "jpg", "jpeg", "webp")
ROWS = 64  # images that are in memory at once while a row group is unpacked
OFFSET = 8  # bytes


def is_parquet(file: str) -> bool:
    """Whether the file's name is that of a Parquet file."""
    return file.endswith(".parquet")


class ParquetSource(ListedSource):
    """A row an image, of one file or of several; train-*.parquet and test-* (or validation-*) give the split.

    Unless named otherwise, a column called label or class is the class, and every further column of 0 and 1 is an
    attribute. Row groups are unpacked once, not for every image.
    """

    def __init__(self, tree: Tree, named: Named):
        scan = list(tree.scan())
        files = [file for file, refusal in scan if not refusal and is_parquet(file)]
        splits, rejects, found = named_splits(files)
        rejects += others(scan, files)
        told, records = Told(), list[Piece]()
        self._images: dict[str, str] = {}  # the column, by file
        self._spool = Spool()
        for file, split in splits.items():
            where = f"{tree.name}/{file}"
            with _opened(tree, file) as parquet:
                self._images[file] = _image_column(parquet.schema_arrow, where)
                pieces = _pieces(parquet, file, split, tree.size(file), where)
                tell(told, parquet, [piece.file for piece in pieces], named, where)
                records += pieces
        roles = told.roles(named, tree.name)
        described = roles.described(records, rejects)
        found = summary(f"Parquet files ({len(splits)}{found})", roles, described)
        super().__init__(tree, described, rejects, [file for file, _ in scan], found, roles.attributes)

    def read(self, record: Record) -> bytes:
        """The image's bytes."""
        assert isinstance(record, Piece)
        file, (group, row) = record.container, record.place
        unpack = partial(_unpack, self.tree, file, self._images[file], group)
        name = f"{file} {group}"
        start, end = np.frombuffer(self._spool.read(name, unpack, OFFSET * row, 2 * OFFSET), np.int64).tolist()
        if start == end:
            raise OSError(0, "the row holds no image bytes")
        return self._spool.read(name, unpack, start, end - start)

    def __getstate__(self) -> dict[str, object]:
        return {"tree": self.tree, "_images": self._images, "_spool": self._spool}


@contextmanager
def _opened(tree: Tree, file: str) -> Iterator[pq.ParquetFile]:
    """The file, read a piece at a time; whatever is wrong with it is a ValueError of one line."""
    try:
        with open_file(tree, file) as opened:
            yield pq.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:  # the machine's, not the file's
            raise
        raise ValueError(f"{tree.name}/{file}: no Parquet, or damaged ({' '.join(str(error).split())})") from None


def _image_column(schema: pa.Schema, where: str) -> str:
    """The path of the column of image bytes."""
    for name in IMAGE_COLUMNS:
        if schema.get_field_index(name) >= 0:
            kind = schema.field(name).type
            if _is_bytes(kind):
                return name
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type):
                return f"{name}.bytes"
    columns = listed([f"{field.name} ({field.type})" for field in schema])
    raise ValueError(f"{where}: no column of image bytes ({', '.join(IMAGE_COLUMNS)}); found: {columns}")


def _pieces(parquet: pq.ParquetFile, file: str, split: str | None, size: int, where: str) -> list[Piece]:
    """A record for every row, placed by row group and row."""
    metadata = parquet.metadata
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if sum(groups) > size or min(groups, default=0) < 0:
        raise ValueError(f"{where}: {sum(groups):,} images in {size:,} bytes cannot be")
    places = [(group, row) for group, rows in enumerate(groups) for row in range(rows)]
    names = keys([f"{os.path.splitext(file)[0]}/{number:06d}" for number in range(len(places))])
    return [
        Piece(key, f"{file}/{number:06d}", split=split, container=file, place=place)
        for number, (key, place) in enumerate(zip(names, places, strict=True))
    ]


def _unpack(tree: Tree, file: str, column: str, group: int, out: BinaryIO) -> None:
    """Writes where each image of a row group begins, and where the last ends; then the images."""
    with _opened(tree, file) as parquet:
        num_rows = parquet.metadata.row_group(group).num_rows
        ends = [OFFSET * (num_rows + 1)]
        out.seek(ends[0])
        for batch in parquet.iter_batches(ROWS, row_groups=[group], columns=[column], use_threads=False):
            values = batch.column(0)
            for value in values.flatten()[0] if pa.types.is_struct(values.type) else values:
                ends.append(ends[-1] + out.write(value.as_py() or b""))
        if len(ends) != num_rows + 1:
            raise ValueError(f"{tree.name}/{file}: damaged ({len(ends) - 1} of {num_rows} rows in row group {group})")
        out.seek(0)
        out.write(np.array(ends, np.int64).tobytes())


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
