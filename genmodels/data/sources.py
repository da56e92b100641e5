"""Where images come from: a folder in one of three layouts, or sprites drawn by the program itself."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genmodels.config import DatasetConfig
from genmodels.data.fields import Record
from genmodels.data.images import Data
from genmodels.data.tables import Tables

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
NOT_AN_IMAGE_FILE = "not an image file"
LAYOUTS = "images in one folder, one sub-folder a class, or trainA/ and trainB/ (and testA/, testB/)"
DOMAIN_FOLDERS = {f"{split}{domain}": (domain, split) for split in ("train", "test") for domain in "AB"}
MAX_KEY = 80  # characters; with hash and extension a tar header holds the name


SPRITES = "sprites"  # the word for the embedded data set
RING = "ring"  # the word for points of the plane
RENDERED = (SPRITES, RING)  # sources that need no files
NUM_POINTS = 20_000  # of the ring, unless the configuration says otherwise


class Reject(NamedTuple):
    """A file that the data set leaves out, and why."""

    file: str
    reason: str


class Source(Protocol):
    """Offers samples by name, and reads one when asked. Picklable: worker processes read."""

    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    domains: tuple[str, ...]
    groups: tuple[str, ...]  # values of the records' `group`
    rejects: tuple[Reject, ...]  # refused by name alone; the records do not hold them

    def records(self) -> Iterator[Record]:
        """Every sample, always in the same order."""

    def read(self, record: Record) -> Data:
        """The file's bytes, or what was rendered. OSError where the file cannot be read."""

    def describe(self) -> str:
        """One line: which layout was found, and how much of it."""

    def fingerprint(self) -> str:
        """Hex digest that changes when the source does; reads no pixels."""


def open_source(config: DatasetConfig, root: Path) -> Source:
    """The source that `config.source` names; relative folders start at `root`.

    ValueError names the folder and the accepted layouts when it is missing or holds no images, and settings that
    only a folder of images takes.
    """
    if config.source in RENDERED:
        for setting in ("label", "attributes", "split_by"):
            if getattr(config, setting) is not None:
                raise ValueError(f"{setting} names columns of a folder's tables; source {config.source!r} has none")
        if config.num_parts:
            raise ValueError(f"num_parts are found in images of a folder; source {config.source!r} takes none")
    if config.source == SPRITES:
        return RenderedSource(config.num_images or 6000, config.image_size)
    if config.source == RING:
        return RingSource(config.num_images or NUM_POINTS)
    if not is_available(config, root):
        raise ValueError(f"source {str(root / Path(config.source).expanduser())!r} is no folder; expected {LAYOUTS}")
    folder = root / Path(config.source).expanduser()
    return FolderSource(folder, config.attributes, config.label, config.split_by)


def is_available(config: DatasetConfig, root: Path) -> bool:
    """Whether the source is there: rendered, or a folder of this machine."""
    return config.source in RENDERED or (root / Path(config.source).expanduser()).is_dir()


class RenderedSource:
    """The embedded data set: `genmodels.data.sprites`, imported only here."""

    groups: tuple[str, ...] = ()
    rejects: tuple[Reject, ...] = ()

    def __init__(self, num_images: int, size: int):
        from genmodels.data.sprites import SpritesSource

        self._sprites = SpritesSource(num_images=num_images, size=size)
        self.classes = tuple(self._sprites.classes)
        self.attributes = tuple(self._sprites.attributes)
        self.domains = tuple(self._sprites.domains)

    def records(self) -> Iterator[Record]:
        """Every sprite."""
        return iter(self._sprites.records())

    def read(self, record: Record) -> Image.Image:
        """The rendered sprite."""
        return self._sprites.read(record)

    def describe(self) -> str:
        """One line for the log."""
        return f"sprites: {len(self.classes)} classes, {len(self.attributes)} attributes"

    def fingerprint(self) -> str:
        """Hash of the renderer's program text: no version number to forget."""
        from genmodels.data import sprite_kinds, sprites

        text = inspect.getsource(sprite_kinds) + inspect.getsource(sprites)
        return hashlib.sha256(text.encode()).hexdigest()


class RingSource:
    """Points of `genmodels.data.ring` as images of one pixel and two channels, labelled by their mode."""

    attributes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    rejects: tuple[Reject, ...] = ()

    def __init__(self, num_images: int):
        import torch

        from genmodels.data.ring import ring_centres, ring_points

        points = ring_points(num_images, torch.Generator().manual_seed(0))
        modes = torch.cdist(points, ring_centres()).argmin(1)  # 10 sigma from the next
        self._points: NDArray[np.float32] = points.numpy()
        self._modes: list[int] = modes.tolist()
        self.classes = tuple(str(mode) for mode in range(len(ring_centres())))

    def records(self) -> Iterator[Record]:
        """Every point; its key is its number."""
        for number, mode in enumerate(self._modes):
            yield Record(f"{number:06d}", f"{number:06d}", label=str(mode))

    def read(self, record: Record) -> NDArray[np.float32]:
        """The point as [1, 1, 2]."""
        return self._points[int(record.key)].reshape(1, 1, 2)

    def describe(self) -> str:
        """One line for the log."""
        return f"ring: {len(self.classes)} modes, {len(self._modes):,} points"

    def fingerprint(self) -> str:
        """Hash of the points."""
        return hashlib.sha256(self._points.tobytes()).hexdigest()


class FolderSource:
    """Images of a folder, sorted by path, with what `genmodels.data.tables` says of them.

    Links that lead out of the folder and files of other types are rejects, and so are images that a table leaves out.
    `attributes`, `label` and `split_by` as in the configuration.
    """

    def __init__(
        self,
        folder: Path,
        attributes: tuple[str, ...] | None = None,
        label: str | None = None,
        split_by: str | None = None,
    ):
        self.folder = folder.resolve()
        rejects: list[Reject] = []
        files = _scan(self.folder, rejects)
        if not files:
            raise ValueError(f"source {str(folder)!r} holds no images; expected {LAYOUTS}")
        tables = Tables(self.folder, files, dict(rejects), NOT_AN_IMAGE_FILE)
        self._tables = [reject for reject in rejects if reject.file in set(tables.used)]
        rejects = [reject for reject in rejects if reject.file not in set(tables.used)]
        records, self._layout = _arrange(files, rejects, class_folders=label is None)
        captions, values = tables.captions(), tables.attributes(attributes)
        labels = tables.column(label, "label") if label else None
        groups = tables.column(split_by, "split_by") if split_by else None

        def described(record: Record) -> Record:
            file = record.file
            return replace(
                record,
                label=labels.get(file) if labels is not None else record.label,
                attributes={name: of[file] for name, of in values.items() if file in of} or None,
                captions=(captions or {}).get(file, ()),
                group=(groups or {}).get(file),
            )

        def missing(record: Record) -> str | None:
            if captions is not None and not record.captions:
                return "no caption"
            if len(record.attributes or ()) < len(values):
                return "no attributes"
            if labels is not None and record.label is None:
                return "no label"
            return f"no {split_by}" if groups is not None and record.group is None else None

        self._records = []
        for record in map(described, records):
            if reason := missing(record):
                rejects.append(Reject(record.file, reason))
            else:
                self._records.append(record)
        self.rejects = tuple(rejects)
        self.attributes = tuple(values)
        self.classes = tuple(sorted({record.label for record in self._records if record.label is not None}))
        self.domains = tuple(sorted({record.domain for record in self._records if record.domain is not None}))
        self.groups = tuple(sorted({record.group for record in self._records if record.group is not None}))
        self._found = tables.describe(values, sum(len(record.captions) for record in self._records))
        self._found += [f"class = {label}"] * bool(label) + [f"split by {split_by}"] * bool(split_by)

    def records(self) -> Iterator[Record]:
        """Every image file, sorted by path."""
        return iter(self._records)

    def read(self, record: Record) -> bytes:
        """The file's bytes."""
        return (self.folder / record.file).read_bytes()

    def describe(self) -> str:
        """One line for the log."""
        return "; ".join([f"{self._layout}: {len(self._records)} images", *self._found])

    def fingerprint(self) -> str:
        """Hash of all files' names, sizes and times of change."""
        digest = hashlib.sha256()
        others = (*self._tables, *self.rejects)
        files = [(record.file, True) for record in self._records] + [(file, False) for file, _ in others]
        for file, follow in files:  # a link that is refused may lead nowhere
            status = os.stat(os.path.join(self.folder, file), follow_symlinks=follow)
            digest.update(b"%s\0%d\0%d\0" % (os.fsencode(file), status.st_size, status.st_mtime_ns))
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder}  # all that `read` needs in a worker process


def _scan(folder: Path, rejects: list[Reject]) -> list[str]:
    """Relative paths of the usable image files, sorted; what is refused goes to `rejects`."""
    files = []
    for file in _walk(folder, rejects):
        if reason := _refusal(folder, file):
            rejects.append(Reject(file, reason))
        else:
            files.append(file)
    return files


def _walk(folder: Path, rejects: list[Reject]) -> Iterator[str]:
    """Relative paths of all files and of links to folders, sorted; hidden ones are skipped."""

    def unreadable(error: OSError) -> None:
        rejects.append(Reject(os.path.relpath(error.filename, folder), f"folder cannot be read ({error.strerror})"))

    for current, subfolders, files in os.walk(folder, onerror=unreadable):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        links = [name for name in subfolders if os.path.islink(os.path.join(current, name))]
        inside = os.path.relpath(current, folder)
        for name in sorted(links + [name for name in files if not name.startswith(".")]):
            yield name if inside == "." else f"{inside}/{name}"


def _refusal(folder: Path, file: str) -> str | None:
    """Why this file cannot be a sample, judged without opening it; None: it can."""
    path = os.path.join(folder, file)
    if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(folder):
        return "link out of the folder"
    if os.path.isdir(path):
        return "link to a folder"
    if os.path.splitext(file)[1].lower() not in EXTENSIONS:
        return NOT_AN_IMAGE_FILE
    return None if os.path.isfile(path) else "not a regular file"


def _arrange(files: list[str], rejects: list[Reject], class_folders: bool) -> tuple[list[Record], str]:
    """The samples with what their folders say of them, and the layout's name."""
    tops: dict[str, list[str]] = defaultdict(list)
    for file in files:
        tops[file.split("/")[0] if "/" in file else ""].append(file)
    if {"trainA", "trainB"} <= tops.keys():
        return _arrange_domains(tops, rejects)
    if tops.keys() & {"trainA", "trainB"}:
        raise ValueError(f"source has {min(tops.keys() & {'trainA', 'trainB'})}/ alone; expected {LAYOUTS}")
    if {"train", "test"} <= tops.keys():
        raise ValueError(f"source has train/ and test/, which would become classes; expected {LAYOUTS}")
    loose = tops.pop("", [])
    if len(tops) < 2 or not class_folders:
        return [Record(key, file) for key, file in zip(_keys(files), files, strict=True)], "flat folder"
    rejects += [Reject(file, "image beside the class folders") for file in loose]
    files = [file for top in tops.values() for file in top]
    records = [
        Record(key, file, label=printable(file.split("/")[0])) for key, file in zip(_keys(files), files, strict=True)
    ]
    return records, f"one folder a class, {len(tops)} classes"


def _arrange_domains(tops: dict[str, list[str]], rejects: list[Reject]) -> tuple[list[Record], str]:
    """Samples of unpaired domains. Without test folders the holdout decides the split."""
    ignored = sorted(top for top in tops if top.startswith("val"))
    for top in tops.keys() - DOMAIN_FOLDERS.keys() - set(ignored):
        rejects += [Reject(file, "outside trainA, trainB, testA, testB") for file in tops[top]]
    has_test = bool(tops.keys() & {"testA", "testB"})
    files = [file for top in DOMAIN_FOLDERS if top in tops for file in tops[top]]
    records = []
    for key, file in zip(_keys(files), files, strict=True):
        domain, split = DOMAIN_FOLDERS[file.split("/")[0]]
        records.append(Record(key, file, domain=domain, split=split if has_test else None))
    found = "/".join(top for top in DOMAIN_FOLDERS if top in tops)
    return records, f"domains {found}" + (f" (ignored: {', '.join(ignored)})" if ignored else "")


def _keys(files: list[str]) -> list[str]:
    """Unique names of [A-Za-z0-9_/-]: the path without its extension, with a hash where that is not enough."""
    stems = [os.path.splitext(file)[0] for file in files]
    plain = [re.sub(r"[^A-Za-z0-9_/-]", "_", stem)[:MAX_KEY] for stem in stems]
    count = Counter(plain)

    def key(file: str, stem: str, name: str) -> str:
        # A name that already looks hashed gets a hash too, so no file can take another's key.
        if name == stem and count[name] == 1 and not re.search(r"-x[0-9a-f]{12}$", name):
            return name
        return f"{name}-x{hashlib.sha256(os.fsencode(file)).hexdigest()[:12]}"

    return [key(*each) for each in zip(files, stems, plain, strict=True)]


def printable(name: str) -> str:
    """`name` as valid Unicode: file names may hold any bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
