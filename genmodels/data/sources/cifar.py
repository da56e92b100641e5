"""CIFAR-10 and CIFAR-100 as their makers publish them for Python: a tar.gz of pickled batches, or its folder.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). A row of a batch is an image of 32x32
pixels: all its reds, then its greens, then its blues.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from genmodels.data.fields import Record
from genmodels.data.sources.array_pickle import ByteArray, as_text, load_arrays
from genmodels.data.sources.listed import ListedSource, Piece
from genmodels.data.sources.names import others
from genmodels.data.sources.spool import Spool
from genmodels.data.sources.tar_members import tar_members
from genmodels.data.sources.tree import Tree, open_file

SIDE = 32
IMAGE = 3 * SIDE * SIDE  # bytes
MAX_UNPACKED = 1 << 30  # bytes of an archive; CIFAR's have 190 million


class Kind(NamedTuple):
    """One of the two data sets."""

    folder: str  # in the archive, where the batches lie
    archive: str
    batch: re.Pattern[str]  # names of batches
    meta: str  # the file of the class names
    labels: str  # key of a batch
    names: str  # key of `meta`

    def is_wanted(self, name: str) -> bool:
        """Whether a file of the data set's folder is read."""
        return name == self.meta or bool(self.batch.fullmatch(name))


KINDS = (
    Kind(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        batch=re.compile(r"data_batch_\d+|test_batch"),
        meta="batches.meta",
        labels="labels",
        names="label_names",
    ),
    Kind(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        batch=re.compile("train|test"),
        meta="meta",
        labels="fine_labels",
        names="fine_label_names",
    ),
)
File = tuple[str, str, bytes]  # its name, how messages call it, its content


def is_cifar(path: str) -> bool:
    """Whether the path is that of an archive, or of the class names in its unpacked folder."""
    return any(os.path.basename(path) == kind.archive or _is_meta(path, kind) for kind in KINDS)


def _is_meta(path: str, kind: Kind) -> bool:
    folder, name = os.path.split(path)
    return name == kind.meta and (name == "batches.meta" or os.path.basename(folder) == kind.folder)


class CifarSource(ListedSource):
    """The images of one of the two data sets, split by batch, with their (fine) classes.

    What a pickle asks for beyond arrays of bytes is refused. Batches are unpacked once, not for every image.
    """

    def __init__(self, tree: Tree):
        scan = list(tree.scan())
        self._batches = _find(tree, [file for file, refusal in scan if not refusal])
        self._spool = Spool()
        records = _records(self._batches)
        used = self._batches.members or (self._batches.file,)
        found = f"{self._batches.kind.folder}: {len(records)} images"
        super().__init__(tree, records, others(scan, used), [file for file, _ in scan], found)

    def read(self, record: Record) -> Image.Image:
        """The image."""
        assert isinstance(record, Piece)
        data = self._spool.read("pixels", self._batches.write_pixels, *record.place)
        planes = np.frombuffer(data, np.uint8).reshape(3, SIDE, SIDE)
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))

    def __getstate__(self) -> dict[str, object]:
        return {"_batches": self._batches, "_spool": self._spool}


class _Batches(NamedTuple):
    """Where the batches are: an archive, or the folder of `members`."""

    tree: Tree
    kind: Kind
    file: str  # archive or folder
    members: tuple[str, ...] = ()  # of a folder; empty for an archive

    @property
    def where(self) -> str:
        """How messages call it."""
        return f"{self.tree.name}/{self.file}".rstrip("/")

    def files(self) -> Iterator[File]:
        """The batches and the class names, one at a time, always in one order."""
        if not self.members:
            yield from self._of_archive()
        for member in self.members:
            if self.tree.size(member) > MAX_UNPACKED:
                raise ValueError(f"{self.tree.name}/{member}: larger than {MAX_UNPACKED:,} bytes")
            yield os.path.basename(member), f"{self.tree.name}/{member}", self.tree.read(member)

    def _of_archive(self) -> Iterator[File]:
        with open_file(self.tree, self.file) as packed, gzip.GzipFile(fileobj=packed) as file:
            for member in tar_members(file, self.where):
                if member.offset_data + member.size > MAX_UNPACKED:
                    raise ValueError(f"{self.where}: unpacks to more than {MAX_UNPACKED:,} bytes")
                folder, name = os.path.split(member.name)
                if os.path.basename(folder) == self.kind.folder and self.kind.is_wanted(name) and member.isreg():
                    file.seek(member.offset_data)
                    yield name, f"{self.where}/{name}", _whole(file, member.size, self.where)

    def write_pixels(self, out: BinaryIO) -> None:
        """Writes the images of all batches, one after another."""
        for name, where, data in self.files():
            if name != self.kind.meta:
                out.write(_images(load_arrays(data, where), where).values)


def _whole(file: gzip.GzipFile, size: int, where: str) -> bytes:
    try:
        data = file.read(size)
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{where}: damaged ({error})") from None
    if len(data) < size:
        raise ValueError(f"{where}: damaged (ends early)")
    return data


def _find(tree: Tree, files: list[str]) -> _Batches:
    """The one data set among these files; of an archive beside its folder, the folder."""
    found: dict[Kind, _Batches] = {}
    for kind, file in ((kind, file) for kind in KINDS for file in files):
        folder, name = os.path.split(file)
        if _is_meta(f"{tree.name}/{file}", kind):
            members = [each for each in files if os.path.dirname(each) == folder]
            members = [each for each in members if kind.is_wanted(os.path.basename(each))]
            found[kind] = _Batches(tree, kind, folder, tuple(sorted(members)))
        elif name == kind.archive:
            found.setdefault(kind, _Batches(tree, kind, file))
    if len(found) > 1:
        raise ValueError(f"source {tree.name!r} holds both CIFAR-10 and CIFAR-100; name the folder or archive of one")
    (batches,) = found.values()
    return batches


def _records(batches: _Batches) -> list[Piece]:
    kind, labels = batches.kind, dict[str, list[int]]()  # by batch
    classes: list[str] = []
    for name, where, data in batches.files():
        values = load_arrays(data, where)
        if name in labels or (name == kind.meta and classes):
            raise ValueError(f"{where}: comes twice")
        if name == kind.meta:
            classes = _class_names(values.get(kind.names), where)
        else:
            labels[name] = _labels(values, kind, where)
    if not classes or not labels:
        raise ValueError(f"{batches.where}: no {kind.meta if labels else 'batches of images'}")
    if (largest := max(max(of, default=0) for of in labels.values())) >= len(classes):
        raise ValueError(f"{batches.where}: label {largest}, but {kind.meta} names {len(classes)} classes")
    numbers = ((name, number) for name, of in labels.items() for number in range(len(of)))
    has_both = 0 < sum(map(_is_test, labels)) < len(labels)
    return [
        Piece(
            key=f"{name}/{number:05d}",
            file=f"{batches.file or kind.folder}/{name}/{number:05d}",
            label=classes[labels[name][number]],
            split=("test" if _is_test(name) else "train") if has_both else None,
            place=(place * IMAGE, IMAGE),
        )
        for place, (name, number) in enumerate(numbers)
    ]


def _is_test(batch: str) -> bool:
    return batch.startswith("test")


def _class_names(names: object, where: str) -> list[str]:
    if not isinstance(names, list) or not names:
        raise ValueError(f"{where}: no list of class names")
    return [as_text(name) for name in names]


def _labels(values: dict[str, Any], kind: Kind, where: str) -> list[int]:
    labels = values.get(kind.labels)
    if not isinstance(labels, list) or not all(type(label) is int and label >= 0 for label in labels):
        raise ValueError(f"{where}: no list of numbers {kind.labels!r}")
    if len(labels) != _images(values, where).shape[0]:
        raise ValueError(f"{where}: {len(labels)} labels for {_images(values, where).shape[0]} images")
    return labels


def _images(values: dict[str, Any], where: str) -> ByteArray:
    images = values.get("data")
    if not isinstance(images, ByteArray) or images.shape[1:] != (IMAGE,):
        raise ValueError(f"{where}: no rows of {IMAGE} bytes under 'data'")
    return images
