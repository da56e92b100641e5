"""Where in the shards each sample lies, and what is known of it: the tables of a prepared data set, checked."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genmodels.data.shards import (
    DATASET_FILE,
    INDEX_SCHEMA,
    MANIFEST_FILE,
    DamagedData,
    Manifest,
    index_name,
    map_file,
    shard_name,
)


def read_index(manifest: Manifest, split: str, size: int) -> pa.Table:
    """One split's samples, in order: the index of `size` joined to the manifest. DamagedData if they disagree."""
    path = manifest.folder / index_name(size)
    index_bytes, about_bytes = (
        pa.BufferReader(map_file(manifest, table))
        for name in (path.name, MANIFEST_FILE)
        for table in manifest.tables
        if table.name == name
    )
    keep = [("split", "=", split)]
    try:
        index = pq.read_table(index_bytes, schema=INDEX_SCHEMA, filters=keep)
        about = pq.read_table(about_bytes, filters=keep)
    except (pa.ArrowException, OSError) as error:
        raise DamagedData(f"{path} or {MANIFEST_FILE}: {error}") from None
    expected = [shard for shard in manifest.shards if (shard.split, shard.size) == (split, size)]
    number = {shard.name: position for position, shard in enumerate(expected)}
    if any(number.get(shard_name(split, size, position)) != position for position in range(len(expected))):
        raise DamagedData(f"{manifest.folder / DATASET_FILE}: the {split} shards of size {size} are not numbered 0 ..")
    shard, row = index["shard"].to_numpy(), index["row"].to_numpy()
    counts = [file.num_samples for file in expected]
    if not (
        np.array_equal(shard, np.repeat(np.arange(len(counts)), counts))
        and np.array_equal(row, [row for count in counts for row in range(count)])
        and index["key"].equals(about["key"])
    ):
        raise DamagedData(f"{path}: disagrees with {DATASET_FILE} or {MANIFEST_FILE}")
    offset, length = index["offset"].to_numpy(), index["length"].to_numpy()
    ends = np.array([file.bytes for file in expected], np.int64)[shard]
    pixels = size * size * manifest.spec.channels
    if (offset < 0).any() or (length <= 0).any() or (offset + length > ends).any():
        raise DamagedData(f"{path}: points outside its shards")
    if manifest.encoding == "raw" and (length != pixels).any():
        raise DamagedData(f"{path}: images are not of {pixels} bytes")
    extra = [name for name in about.column_names if name not in index.column_names]
    for name in extra:
        index = index.append_column(name, about[name])
    return index
