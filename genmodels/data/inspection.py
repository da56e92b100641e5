"""What a prepared data set holds, in numbers: counts, shares, captions, sizes, copies, pixels.

Read column by column from the manifest, so it takes no more memory than the reader of a training: 1 kB an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genmodels.data.cache import ShardCache
from genmodels.data.captions import words
from genmodels.data.fields import DataSpec
from genmodels.data.findings import (
    Attributes,
    Captions,
    Copies,
    Copy,
    Count,
    Groups,
    Inspection,
    Originals,
    PixelValues,
    Reason,
    Sides,
    Spread,
)
from genmodels.data.reader import ShardReader
from genmodels.data.shards import MANIFEST_FILE, REJECTS_FILE, open_shards

MAX_EXAMPLES = 5  # files named of each kind
MAX_PAIRED_ATTRIBUTES = 12  # more make no table that anyone reads
NUM_WORDS = 20  # the most frequent ones
PIXEL_IMAGES, PIXEL_BYTES = 2000, 128 << 20  # at most, for means and deviations
BATCH = 8192  # captions at a time
ASPECTS = {
    "tall (below 1:2)": 0.5,
    "portrait": 0.8,
    "about square": 1.25,
    "landscape": 2.0,
}  # width / height, upper end
WIDEST = "wide (above 2:1)"


def inspect(folder: Path, cache: ShardCache | None = None) -> Inspection:
    """The statistics of the data set in `folder`. ValueError when there is none."""
    manifest = open_shards(folder)
    spec = manifest.spec
    held_out = _numpy(pc.equal(_table(folder, "split")["split"], "test"))
    reasons = _reasons(folder)
    return Inspection(
        spec=spec,
        source=manifest.source,
        encoding=manifest.encoding,
        found=len(held_out) + sum(reason.number for reason in reasons),
        accepted=len(held_out),
        rejected=sum(reason.number for reason in reasons),
        reasons=reasons,
        classes=_classes(folder, spec, held_out),
        domains=_domains(folder, spec, held_out),
        groups=_groups(folder, spec, held_out) if spec.group else None,
        attributes=_attributes(folder, spec, held_out) if spec.attributes else None,
        captions=_captions(folder, spec) if spec.vocabulary else None,
        originals=_originals(folder, manifest.counts["upscaled"]) if spec.channels != 2 else None,
        copies=_copies(folder),
        pixels=_pixels(folder, spec, cache),
    )


def _table(folder: Path, *columns: str) -> pa.Table:
    return pq.read_table(folder / MANIFEST_FILE, columns=list(columns))


def _numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    return column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()


def _spread(values: Sequence[float] | NDArray[Any]) -> Spread:
    ordered = np.asarray(values)
    return Spread(ordered.min().item(), float(np.median(ordered)), ordered.max().item())


def _counts(counter: Counter[str], limit: int | None = None) -> tuple[Count, ...]:
    """The most frequent first, equally frequent ones by name."""
    ordered = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Count(*item) for item in ordered[:limit])


def _sides(names: Iterable[str], numbers: NDArray[np.int64], held_out: NDArray[np.bool_]) -> tuple[Sides, ...]:
    """Occurrences of 0, 1, ... in each split, by name."""
    names = tuple(names)
    train, test = (np.bincount(numbers[side], minlength=len(names)).tolist() for side in (~held_out, held_out))
    return tuple(Sides(*each) for each in zip(names, train, test, strict=True))


def _reasons(folder: Path) -> tuple[Reason, ...]:
    rejects = pq.read_table(folder / REJECTS_FILE)
    found = Counter({each["values"]: each["counts"] for each in pc.value_counts(rejects["reason"]).to_pylist()})

    def files(reason: str) -> tuple[str, ...]:
        return tuple(rejects.filter(pc.equal(rejects["reason"], reason))["file"][:MAX_EXAMPLES].to_pylist())

    return tuple(Reason(count.name, count.number, files(count.name)) for count in _counts(found))


def _classes(folder: Path, spec: DataSpec, held_out: NDArray[np.bool_]) -> tuple[Sides, ...]:
    if not spec.classes:
        return ()
    return _sides(spec.classes, _numpy(_table(folder, "label")["label"]), held_out)


def _domains(folder: Path, spec: DataSpec, held_out: NDArray[np.bool_]) -> tuple[Sides, ...]:
    if not spec.domains:
        return ()
    numbers = pc.index_in(_table(folder, "domain")["domain"], pa.array(spec.domains))
    return _sides(spec.domains, _numpy(numbers), held_out)


def _groups(folder: Path, spec: DataSpec, held_out: NDArray[np.bool_]) -> Groups:
    numbers = _numpy(_table(folder, "group")["group"])
    train, test = (set(np.unique(numbers[side]).tolist()) for side in (~held_out, held_out))
    sizes = np.unique(numbers, return_counts=True)[1]
    return Groups(spec.group, len(train), len(test), len(train & test), _spread(sizes))


def _attributes(folder: Path, spec: DataSpec, held_out: NDArray[np.bool_]) -> Attributes:
    flat = _table(folder, "attributes")["attributes"].combine_chunks().flatten()
    values = flat.to_numpy().reshape(len(held_out), len(spec.attributes)).astype(bool)
    train, test = (values[side].sum(0).tolist() for side in (~held_out, held_out))
    few = range(len(spec.attributes)) if len(spec.attributes) <= MAX_PAIRED_ATTRIBUTES else ()
    together = tuple(tuple(int((values[:, i] & values[:, j]).sum()) for j in few) for i in few)
    return Attributes(tuple(Sides(*each) for each in zip(spec.attributes, train, test, strict=True)), together)


def _captions(folder: Path, spec: DataSpec) -> Captions:
    known = set(spec.vocabulary)
    frequent: Counter[str] = Counter()
    lengths, numbers = Counter[int](), Counter[int]()
    examples: list[str] = []
    unknown = held_out = 0
    for split, captions in _caption_rows(folder):
        numbers[len(captions)] += 1
        examples += captions[:1] if len(examples) < MAX_EXAMPLES else []
        for caption in captions:
            found = words(caption)
            frequent.update(found)
            lengths[len(found)] += 1
            if split == "test":
                held_out += len(found)
                unknown += sum(word not in known for word in found)
    return Captions(
        number=lengths.total(),
        an_image=_spread(np.repeat(*_pairs(numbers))),
        words=_spread(np.repeat(*_pairs(lengths))),
        vocabulary=len(spec.vocabulary),
        cut=sum(number for length, number in lengths.items() if length > spec.num_words),
        frequent=_counts(frequent, NUM_WORDS),
        unknown=unknown / max(1, held_out),
        examples=tuple(examples),
    )


def _caption_rows(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Split and captions of every image, some thousand in memory at a time."""
    with pq.ParquetFile(folder / MANIFEST_FILE) as file:
        for batch in file.iter_batches(BATCH, columns=["split", "captions"]):
            yield from zip(batch["split"].to_pylist(), batch["captions"].to_pylist(), strict=True)


def _pairs(counter: Counter[int]) -> tuple[list[int], list[int]]:
    return list(counter.keys()), list(counter.values())


def _originals(folder: Path, enlarged: int) -> Originals:
    table = _table(folder, "width", "height", "bytes")
    width, height, num_bytes = (_numpy(table[name]).astype(np.int64) for name in table.column_names)
    powers, numbers = np.unique(np.log2(np.minimum(width, height)).astype(int), return_counts=True)
    shorter = [
        Count(f"{2**p} to {2 ** (p + 1) - 1}", n) for p, n in zip(powers.tolist(), numbers.tolist(), strict=True)
    ]
    shape = np.bincount(np.searchsorted(list(ASPECTS.values()), width / height), minlength=len(ASPECTS) + 1)
    shapes = [Count(*each) for each in zip((*ASPECTS, WIDEST), shape.tolist(), strict=True)]
    return Originals(
        width=_spread(width),
        height=_spread(height),
        aspect=_spread(width / height),
        shorter=tuple(shorter),
        shapes=tuple(each for each in shapes if each.number),
        enlarged=enlarged,
        bytes=_spread(num_bytes),
        total_bytes=int(num_bytes.sum()),
    )


def _copies(folder: Path) -> Copies:
    content = _table(folder, "sha256")["sha256"]
    counted = pa.Table.from_struct_array(pc.value_counts(content))
    several = counted.filter(pc.greater(counted["counts"], 1))["values"]
    keep = pc.is_in(content, value_set=several.combine_chunks())
    copies = _table(folder, "sha256", "split", "file").filter(keep)
    test = pc.cast(pc.equal(copies["split"], "test"), pa.int64())
    groups = copies.append_column("test", test).group_by("sha256").aggregate([("test", "sum"), ("test", "count")])
    straddles = pc.and_(pc.greater(groups["test_sum"], 0), pc.less(groups["test_sum"], groups["test_count"]))
    groups = groups.append_column("straddles", straddles)
    order = [("straddles", "descending"), ("test_count", "descending"), ("sha256", "ascending")]

    def described(group: dict[str, Any]) -> Copy:
        files = copies.filter(pc.equal(copies["sha256"], group["sha256"]))["file"][:MAX_EXAMPLES].to_pylist()
        return Copy(group["test_count"], group["test_count"] - group["test_sum"], group["test_sum"], tuple(files))

    return Copies(
        images=len(copies) - len(groups),
        groups=len(groups),
        straddling=pc.sum(straddles).as_py() or 0,
        largest=tuple(map(described, groups.sort_by(order)[:MAX_EXAMPLES].to_pylist())),
    )


def _pixels(folder: Path, spec: DataSpec, cache: ShardCache | None) -> PixelValues:
    """From exact histograms of images evenly spread over the training split."""
    size, channels = spec.image_size, spec.channels
    reader = ShardReader(folder, "train", size, cache=cache)
    num = min(reader.num, PIXEL_IMAGES, max(1, PIXEL_BYTES // (size * size * channels)))
    histogram = np.zeros((channels, 256), np.int64)
    for number in np.linspace(0, reader.num - 1, num).astype(np.int64):
        image = reader.read(number[None])
        for channel in range(channels):
            histogram[channel] += np.bincount(image[..., channel].ravel(), minlength=256)
    levels, shares = np.arange(256) / 127.5 - 1, histogram / histogram.sum(1, keepdims=True)
    mean = shares @ levels
    std = np.sqrt(np.maximum(0, shares @ levels**2 - mean**2))
    return PixelValues(tuple(mean.tolist()), tuple(std.tolist()), num)
