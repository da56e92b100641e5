"""MNIST's files: arrays of gray images and of labels (IDX, by Y. LeCun), plain or gzipped.

A set is train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k (or test), with any prefix, as
emnist-letters-train-images-idx3-ubyte.gz. EMNIST's images lie on their side in its files, and stay so.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import zlib
from collections import defaultdict
from functools import partial
from typing import BinaryIO, NamedTuple

from PIL import Image

from genmodels.data.fields import Record
from genmodels.data.sources.columns import listed
from genmodels.data.sources.listed import ListedSource, Piece
from genmodels.data.sources.names import others
from genmodels.data.sources.spool import Spool
from genmodels.data.sources.tree import Tree, open_file

NAME = re.compile(r"(?P<set>.*?)(?P<split>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(\.gz)?")
SPLITS = ("train", "t10k", "test")
KINDS = ("images-idx3", "images.idx3", "labels-idx1", "labels.idx1")
MAX_RATIO = 1032  # of deflate, at most
MAX_SIDE = 1024  # pixels; MNIST's have 28
HEAD = 4096  # bytes that hold a header, gzip's included
CHUNK = 1 << 20


def is_idx(file: str) -> bool:
    """Whether the file's name is that of an IDX file."""
    return bool(NAME.fullmatch(os.path.basename(file)))


def set_names(file: str) -> tuple[str, ...]:
    """The names that the files of one set may have, of which `file` is one."""
    match = NAME.fullmatch(file)
    assert match, file
    names = (f"{match['set']}{split}-{kind}-ubyte" for split in SPLITS for kind in KINDS)
    return tuple(name + packed for name in names for packed in ("", ".gz"))


class Array(NamedTuple):
    """An IDX file: its header."""

    file: str
    shape: tuple[int, ...]  # images, rows, columns; or labels

    @property
    def start(self) -> int:
        """Where the values begin, in bytes."""
        return 4 + 4 * len(self.shape)

    @property
    def num_bytes(self) -> int:
        """Of the whole file, unpacked."""
        return self.start + math.prod(self.shape)


class IdxSource(ListedSource):
    """The images of one set, split by file; labels are digits as text. ValueError for files that are no such arrays.

    Plain files are read by offset; gzipped ones are unpacked once, and only then is their end checked.
    """

    def __init__(self, tree: Tree):
        self._spool = Spool()
        scan = list(tree.scan())
        images, labels = _one_set(tree, [file for file, refusal in scan if not refusal])
        with_labels = images.keys() == labels.keys()
        self._arrays = {file: _array(tree, file, 3) for file in images.values()}
        records: list[Piece] = []
        for split, file in images.items():
            array = self._arrays[file]
            digits = _labels(tree, labels[split], array) if with_labels else None
            side = "train" if split == "train" else "test"
            records += _records(array, digits, side, side if len(images) > 1 else None)
        used = {*images.values(), *(labels.values() if with_labels else ())}
        found = f"IDX files {listed(list(images.values()))}: {len(records)} images"
        found += ", labelled" if with_labels else ", without labels"
        super().__init__(tree, records, others(scan, used), [file for file, _ in scan], found)

    def read(self, record: Record) -> Image.Image:
        """The image, gray."""
        assert isinstance(record, Piece)
        file, (start, length) = record.container, record.place
        array = self._arrays[file]
        if file.endswith(".gz"):
            data = self._spool.read(file, partial(_unpack, self.tree, array), start, length)
        else:
            data = self.tree.read(file, start, length)
        if len(data) < length:
            raise OSError(0, "file ends early")
        return Image.frombytes("L", (array.shape[2], array.shape[1]), data)

    def __getstate__(self) -> dict[str, object]:
        return {"tree": self.tree, "_spool": self._spool, "_arrays": self._arrays}


def _one_set(tree: Tree, files: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The files of images and of labels by split: of a file with several copies the plain one."""
    sets: dict[tuple[str, str], dict[str, dict[str, str]]] = defaultdict(lambda: {"images": {}, "labels": {}})
    for file in sorted(files, key=lambda file: (file.endswith(".gz"), file)):
        folder, name = os.path.split(file)
        if match := NAME.fullmatch(name):
            sets[folder, match["set"]][match["kind"]].setdefault(match["split"], file)
    sets = {key: found for key, found in sets.items() if found["images"]}
    if not sets:
        raise ValueError(f"source {tree.name!r} holds labels of IDX files, and no images (train-images-idx3-ubyte)")
    if len(sets) > 1:
        names = listed(sorted(min(found["images"].values()) for found in sets.values()))
        raise ValueError(f"source {tree.name!r} holds several sets of IDX files; name a file of one: {names}")
    (found,) = sets.values()
    if {"t10k", "test"} <= found["images"].keys():
        raise ValueError(f"source {tree.name!r} holds both t10k and test images; keep one")
    images = {split: found["images"][split] for split in SPLITS if split in found["images"]}
    return images, {split: found["labels"][split] for split in images if split in found["labels"]}


def _records(array: Array, labels: bytes | None, side: str, split: str | None) -> list[Piece]:
    size = math.prod(array.shape[1:])
    return [
        Piece(
            key=f"{side}/{number:06d}",
            file=f"{array.file}/{number:06d}",
            label=None if labels is None else str(labels[number]),
            split=split,
            container=array.file,
            place=(array.start + number * size, size),
        )
        for number in range(array.shape[0])
    ]


def _array(tree: Tree, file: str, dims: int) -> Array:
    """The header of a file of bytes in so many dimensions, checked against the file's size where it is plain."""
    where = f"{tree.name}/{file}"
    head = tree.read(file, 0, HEAD)
    if file.endswith(".gz"):
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 4 + 4 * dims)
        except zlib.error as error:
            raise ValueError(f"{where}: no gzip file ({error})") from None
    if len(head) < 4 + 4 * dims or head[:4] != bytes([0, 0, 8, dims]):
        raise ValueError(
            f"{where}: no IDX file of bytes in {dims} dimensions (starts with {head[:4].hex() or 'nothing'})"
        )
    shape = tuple(int.from_bytes(head[place : place + 4], "big") for place in range(4, 4 + 4 * dims, 4))
    if not all(0 < side <= MAX_SIDE for side in shape[1:]):
        raise ValueError(f"{where}: images of {shape[1]}x{shape[2]} pixels; 1 to {MAX_SIDE} a side are read")
    array = Array(file, shape)
    size = tree.size(file)
    if array.num_bytes > size * MAX_RATIO if file.endswith(".gz") else array.num_bytes != size:
        raise _wrong_size(where, array, f"has {size:,}")
    return array


def _labels(tree: Tree, file: str, images: Array) -> bytes:
    array = _array(tree, file, 1)
    if array.shape[0] != images.shape[0]:
        where = f"{tree.name}/{file}"
        raise ValueError(f"{where}: {array.shape[0]} labels for the {images.shape[0]} images of {images.file}")
    if not file.endswith(".gz"):
        return tree.read(file)[array.start :]
    values = io.BytesIO()
    _unpack(tree, array, values)
    return values.getvalue()[array.start :]


def _unpack(tree: Tree, array: Array, out: BinaryIO) -> None:
    """Writes the unpacked file; never more than its header announces."""
    where, left = f"{tree.name}/{array.file}", array.num_bytes
    try:
        with open_file(tree, array.file) as packed, gzip.GzipFile(fileobj=packed) as file:
            while left and (data := file.read(min(left, CHUNK))):
                out.write(data)
                left -= len(data)
            more = file.read(1)  # at the end gzip checks its sum
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{where}: damaged ({error})") from None
    if left or more:
        raise _wrong_size(where, array, "has more" if more else f"has {array.num_bytes - left:,}")


def _wrong_size(where: str, array: Array, found: str) -> ValueError:
    return ValueError(f"{where}: its header means {array.num_bytes:,} bytes, the file {found}")
