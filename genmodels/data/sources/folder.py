"""Images of a folder, here or behind a URL, in one of four layouts, with the tables beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from itertools import count
from typing import NamedTuple

from genmodels.data.fields import Record, Reject
from genmodels.data.sources.columns import Named
from genmodels.data.sources.listed import ListedSource
from genmodels.data.sources.names import (
    LAYOUTS,
    NOT_AN_IMAGE_FILE,
    held_out,
    is_image_name,
    keys,
    printable,
    split_of,
)
from genmodels.data.sources.tables import Tables
from genmodels.data.sources.tree import Tree

DOMAINS = ("A", "B")


class FolderSource(ListedSource):
    """Images of a folder, sorted by path, with what `genmodels.data.sources.tables` says of them.

    Links that lead out of the folder and files of other types are rejects, and so are images that a table leaves out.
    """

    def __init__(self, tree: Tree, named: Named):
        rejects: list[Reject] = []
        files = _scan(tree, rejects)
        if not files:
            raise ValueError(f"source {tree.name!r} holds no images; expected {LAYOUTS}")
        tables = Tables(tree, files, dict(rejects), NOT_AN_IMAGE_FILE)
        used = set(tables.used)
        used_tables = [reject.file for reject in rejects if reject.file in used]
        rejects = [reject for reject in rejects if reject.file not in used]
        arranged, layout = _arrange(files, rejects, class_folders=named.label is None)
        roles = tables.roles(named, tables.captions())
        records = roles.described(arranged, rejects)
        others = [*used_tables, *(reject.file for reject in rejects)]
        found = tables.describe(roles.attributes, sum(len(record.captions) for record in records))
        super().__init__(
            tree,
            records,
            rejects,
            [*(record.file for record in records), *others],
            "; ".join([f"{layout}: {len(records)} images", *found, *roles.words]),
            roles.attributes,
        )

    def read(self, record: Record) -> bytes:
        """The file's bytes."""
        return self.tree.read(record.file)


def _scan(tree: Tree, rejects: list[Reject]) -> list[str]:
    """Relative paths of the usable image files, sorted; what is refused goes to `rejects`."""
    files = []
    for file, refusal in tree.scan():
        if refusal is None and not is_image_name(file):
            refusal = NOT_AN_IMAGE_FILE
        if refusal:
            rejects.append(Reject(file, refusal))
        else:
            files.append(file)
    return files


class _Folders(NamedTuple):
    """The folders that say something of the images that they hold."""

    files: dict[str, list[str]]  # by the folder's name; "" for images beside the folders
    depth: int  # how many folders lie above each of them

    def inside(self, file: str) -> list[str]:
        """The parts of a path below such a folder."""
        return file.split("/")[self.depth + 1 :]

    @property
    def place(self) -> str:
        """Where they lie, as a few words; nothing of the source itself."""
        above = next(file for files in self.files.values() for file in files).split("/")[: self.depth]
        return f" in {printable('/'.join(above))}/" if above else ""


def _folders(files: list[str]) -> _Folders:
    """A folder that lies alone says nothing: what it holds does, as of an archive that was unpacked (pets/train)."""
    for depth in count():
        found: dict[str, list[str]] = defaultdict(list)
        for file in files:
            parts = file.split("/")
            found[parts[depth] if len(parts) > depth + 1 else ""].append(file)
        if len(found) > 1 or "" in found or _domain(next(iter(found))):
            return _Folders(found, depth)
    raise AssertionError


def _domain(folder: str) -> tuple[str, str] | None:
    """Domain and split of a folder such as trainA."""
    domain, split = folder[-1:].upper(), split_of(folder[:-1])
    return (domain, split) if domain in DOMAINS and split else None


def _arrange(files: list[str], rejects: list[Reject], class_folders: bool) -> tuple[list[Record], str]:
    """The samples with what their folders say of them, and the layout's name."""
    folders = _folders(files)
    domains = {folder: domain for folder in folders.files if (domain := _domain(folder))}
    trained = {domain for domain, split in domains.values() if split == "train"}
    if len(trained) == 2:
        return _arrange_domains(folders, domains, rejects)
    if trained:
        raise ValueError(f"source has train{min(trained)}/ alone; expected {LAYOUTS}")
    splits = {folder: split for folder in folders.files if (split := split_of(folder))}
    if other := held_out(splits.values()):
        return _arrange_splits(folders, splits, other, rejects, class_folders)
    classes = [folder for folder in folders.files if folder]
    if len(classes) < 2 or not class_folders:
        return [Record(key, file) for key, file in zip(keys(files), files, strict=True)], "flat folder"
    rejects += [Reject(file, "image beside the class folders") for file in folders.files.get("", [])]
    label_of = {file: printable(name) for name in classes for file in folders.files[name]}
    records = [Record(key, file, label=label_of[file]) for key, file in zip(keys([*label_of]), label_of, strict=True)]
    return records, f"one folder a class{folders.place}, {len(classes)} classes"


def _arrange_splits(
    folders: _Folders, splits: dict[str, str], other: str, rejects: list[Reject], class_folders: bool
) -> tuple[list[Record], str]:
    """Samples whose folder is their split: train, and `other` is held out."""
    used = [folder for split in ("train", other) for folder in splits if splits[folder] == split]
    names = " and ".join(f"{folder}/" for folder in used)
    others = (folder for folder in folders.files if folder not in splits)
    rejects += [Reject(file, f"outside {names}") for folder in others for file in folders.files[folder]]
    split_by_file = {file: splits[folder] for folder in used for file in folders.files[folder]}
    classes = {inside[0] for file in split_by_file if len(inside := folders.inside(file)) > 1}
    with_classes = class_folders and len(classes) > 1
    if with_classes:
        loose = [file for file in split_by_file if len(folders.inside(file)) == 1]
        rejects += [Reject(file, "image beside the class folders") for file in loose]
        for file in loose:
            del split_by_file[file]
    records = [
        Record(
            key,
            file,
            label=printable(folders.inside(file)[0]) if with_classes else None,
            split="train" if split == "train" else "test",
        )
        for key, (file, split) in zip(keys([*split_by_file]), split_by_file.items(), strict=True)
    ]
    found = names + folders.place + (f", one folder a class, {len(classes)} classes" if with_classes else "")
    return records, found + _ignored(splits.keys() - set(used))


def _arrange_domains(
    folders: _Folders, domains: dict[str, tuple[str, str]], rejects: list[Reject]
) -> tuple[list[Record], str]:
    """Samples of unpaired domains. Without test folders the holdout decides the split."""
    others = (folder for folder in folders.files if folder not in domains)
    outside = "outside trainA, trainB, testA, testB"
    rejects += [Reject(file, outside) for folder in others for file in folders.files[folder]]
    other = held_out([split for _, split in domains.values()])
    used = sorted(
        (split != "train", domain, folder) for folder, (domain, split) in domains.items() if split in ("train", other)
    )
    files = [(file, domain, is_test) for is_test, domain, folder in used for file in folders.files[folder]]
    records = [
        Record(key, file, domain=domain, split=("test" if is_test else "train") if other else None)
        for key, (file, domain, is_test) in zip(keys([file for file, _, _ in files]), files, strict=True)
    ]
    names = [folder for _, _, folder in used]
    return records, f"domains {'/'.join(names)}{folders.place}" + _ignored(domains.keys() - set(names))


def _ignored(folders: Set[str]) -> str:
    return f" (ignored: {', '.join(sorted(folders))})" if folders else ""
