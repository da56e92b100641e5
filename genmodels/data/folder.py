"""Images of a folder, here or behind a URL, in one of four layouts, with the tables beside them."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

from genmodels.data.fields import Record, Reject
from genmodels.data.tables import Tables
from genmodels.data.tree import Tree

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
NOT_AN_IMAGE_FILE = "not an image file"
LAYOUTS = (
    "images in one folder, one sub-folder a class, train/ and test/ (or val/) of either, "
    "or trainA/ and trainB/ (and testA/, testB/)"
)
SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
DOMAIN_FOLDERS = {f"{split}{domain}": (domain, split) for split in ("train", "test") for domain in "AB"}
MAX_KEY = 80  # characters; with hash and extension a tar header holds the name


class FolderSource:
    """Images of a folder, sorted by path, with what `genmodels.data.tables` says of them.

    Links that lead out of the folder and files of other types are rejects, and so are images that a table leaves out.
    `attributes`, `label` and `split_by` as in the configuration.
    """

    def __init__(
        self,
        tree: Tree,
        attributes: tuple[str, ...] | None = None,
        label: str | None = None,
        split_by: str | None = None,
    ):
        self.tree = tree
        rejects: list[Reject] = []
        files = _scan(tree, rejects)
        if not files:
            raise ValueError(f"source {tree.name!r} holds no images; expected {LAYOUTS}")
        tables = Tables(tree, files, dict(rejects), NOT_AN_IMAGE_FILE)
        used = set(tables.used)
        used_tables = [reject for reject in rejects if reject.file in used]
        rejects = [reject for reject in rejects if reject.file not in used]
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
        self._others = (*used_tables, *rejects)
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
        return self.tree.read(record.file)

    def describe(self) -> str:
        """One line for the log."""
        return "; ".join([f"{self._layout}: {len(self._records)} images", *self._found])

    def fingerprint(self) -> str:
        """Hash of all files' names, sizes and times of change."""
        digest = hashlib.sha256()
        for file in (*(record.file for record in self._records), *(file for file, _ in self._others)):
            digest.update(b"%s\0%s\0" % (os.fsencode(file), self.tree.stamp(file)))
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, object]:
        return {"tree": self.tree}  # all that `read` needs in a worker process


def _scan(tree: Tree, rejects: list[Reject]) -> list[str]:
    """Relative paths of the usable image files, sorted; what is refused goes to `rejects`."""
    files = []
    for file, refusal in tree.scan():
        if refusal is None and os.path.splitext(file)[1].lower() not in EXTENSIONS:
            refusal = NOT_AN_IMAGE_FILE
        if refusal:
            rejects.append(Reject(file, refusal))
        else:
            files.append(file)
    return files


def _arrange(files: list[str], rejects: list[Reject], class_folders: bool) -> tuple[list[Record], str]:
    """The samples with what their folders say of them, and the layout's name."""
    tops: dict[str, list[str]] = defaultdict(list)
    for file in files:
        tops[file.split("/")[0] if "/" in file else ""].append(file)
    if {"trainA", "trainB"} <= tops.keys():
        return _arrange_domains(tops, rejects)
    if tops.keys() & {"trainA", "trainB"}:
        raise ValueError(f"source has {min(tops.keys() & {'trainA', 'trainB'})}/ alone; expected {LAYOUTS}")
    if "train" in tops and tops.keys() & (SPLIT_FOLDERS.keys() - {"train"}):
        return _arrange_splits(tops, rejects, class_folders)
    loose = tops.pop("", [])
    if len(tops) < 2 or not class_folders:
        return [Record(key, file) for key, file in zip(_keys(files), files, strict=True)], "flat folder"
    rejects += [Reject(file, "image beside the class folders") for file in loose]
    files = [file for top in tops.values() for file in top]
    records = [
        Record(key, file, label=printable(file.split("/")[0])) for key, file in zip(_keys(files), files, strict=True)
    ]
    return records, f"one folder a class, {len(tops)} classes"


def _arrange_splits(tops: dict[str, list[str]], rejects: list[Reject], class_folders: bool) -> tuple[list[Record], str]:
    """Samples whose top folder is their split: test/ is held out, val/ where there is no test/."""
    held_out = "test" if "test" in tops else min(tops.keys() & (SPLIT_FOLDERS.keys() - {"train"}))
    ignored = sorted(tops.keys() & (SPLIT_FOLDERS.keys() - {"train", held_out}))
    for top in tops.keys() - {"train", held_out, *ignored}:
        rejects += [Reject(file, f"outside train/ and {held_out}/") for file in tops[top]]
    files = tops["train"] + tops[held_out]
    folders = {file.split("/")[1] for file in files if file.count("/") > 1}
    with_classes = class_folders and len(folders) > 1
    if with_classes:
        rejects += [Reject(file, "image beside the class folders") for file in files if file.count("/") == 1]
        files = [file for file in files if file.count("/") > 1]
    records = [
        Record(
            key,
            file,
            label=printable(file.split("/")[1]) if with_classes else None,
            split="train" if file.startswith("train/") else "test",
        )
        for key, file in zip(_keys(files), files, strict=True)
    ]
    found = f"train/ and {held_out}/" + (f", one folder a class, {len(folders)} classes" if with_classes else "")
    return records, found + (f" (ignored: {', '.join(ignored)})" if ignored else "")


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
