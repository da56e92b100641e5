"""The tables and totals of a prepared data set, made of its journal in one pass; memory stays flat."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genmodels.config import DatasetConfig
from genmodels.data.captions import MAX_WORDS, build_vocabulary, words
from genmodels.data.fields import Reject
from genmodels.data.images import is_upscaled, pyramid_sizes
from genmodels.data.journal import Journal
from genmodels.data.shards import INDEX_SCHEMA, MANIFEST_FILE, REJECTS_FILE, TableFile, index_name
from genmodels.data.sources.names import printable
from genmodels.files import sha256_file

SPLITS = ("train", "test")
ROWS = 16_384  # of a table's row group, and at most in memory

MANIFEST_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("file", pa.string()),  # path in the source
        ("sha256", pa.string()),  # of the file; of the pixels, where they were rendered
        ("bytes", pa.int64()),
        ("width", pa.int32()),  # of the original, upright
        ("height", pa.int32()),
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("label", pa.int64()),  # index of the class
        ("class", pa.string()),
        ("domain", pa.string()),
        ("attributes", pa.list_(pa.uint8())),  # in the order of the DataSpec
        ("parts", pa.list_(pa.list_(pa.float32(), 4))),  # left, top, right, bottom: fractions of the squared image
        ("captions", pa.list_(pa.string())),
        ("group", pa.int64()),  # number of the value of the column that split the images
    ]
)
REJECTS_SCHEMA = pa.schema([("file", pa.string()), ("reason", pa.string())])


class Totals:
    """What is counted over all samples accepted."""

    def __init__(self, config: DatasetConfig):
        self._config = config
        self.num: Counter[str] = Counter()  # by split
        self.num_upscaled = 0
        self._contents = array("Q")  # 64 bits of each hash: among a million, copies are told by chance once in 4e7
        self._captioned, self._words = True, Counter[str]()
        self._num_captions = self._num_words = 0

    def add(self, row: dict[str, Any]) -> None:
        """Counts one sample of the manifest."""
        self.num[row["split"]] += 1
        self.num_upscaled += is_upscaled(row["width"], row["height"], self._config)
        self._contents.append(int(row["sha256"][:16], 16))
        self._captioned = self._captioned and bool(row["captions"])
        self._num_captions = max(self._num_captions, len(row["captions"]))
        for caption in row["captions"] if row["split"] == "train" else ():
            found = words(caption)
            self._words.update(found)
            self._num_words = max(self._num_words, len(found))

    @property
    def num_duplicates(self) -> int:
        """Samples that are copies of another."""
        return len(self._contents) - len(np.unique(np.frombuffer(self._contents, np.uint64)))

    def captions(self) -> dict[str, Any]:
        """Vocabulary and sizes of the captions, where every image has one."""
        if not self._captioned:
            return {}
        return {
            "vocabulary": build_vocabulary(self._words),
            "num_captions": self._num_captions,
            "num_words": min(MAX_WORDS, self._num_words),
        }


def write_tables(
    folder: Path, journal: Journal, rejects: Iterable[Reject], config: DatasetConfig
) -> tuple[Totals, tuple[TableFile, ...]]:
    """Writes manifest, rejects and an index a size into `folder`; what they total."""
    sizes, totals = pyramid_sizes(config.image_size, config.pyramid), Totals(config)
    with ExitStack() as stack:
        manifest = stack.enter_context(_table(folder / MANIFEST_FILE, MANIFEST_SCHEMA))
        index = {size: stack.enter_context(_table(folder / index_name(size), INDEX_SCHEMA)) for size in sizes}
        for split in SPLITS:  # one after the other: whoever reads one skips the other's row groups
            for row, places in journal.accepted(split):
                totals.add(row)
                manifest.add(row)
                for size, (offset, length) in places.items():
                    index[size].add({**row, "offset": offset, "length": length})
        refused = stack.enter_context(_table(folder / REJECTS_FILE, REJECTS_SCHEMA))
        for reject in rejects:
            refused.add({"file": printable(reject.file), "reason": reject.reason})
    names = [MANIFEST_FILE, REJECTS_FILE, *map(index_name, sizes)]
    return totals, tuple(TableFile(name, (folder / name).stat().st_size, sha256_file(folder / name)) for name in names)


class _Table:
    """Rows for a Parquet file, written ROWS at a time."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema):
        self._writer, self._schema = writer, schema
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []


@contextmanager
def _table(path: Path, schema: pa.Schema) -> Iterator[_Table]:
    with pq.ParquetWriter(path, schema) as writer:
        table = _Table(writer, schema)
        yield table
        table.flush()
