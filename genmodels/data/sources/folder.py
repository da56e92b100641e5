"""Images of a folder, here or behind a URL, in one of four layouts, with the tables beside them."""

from __future__ import annotations

from collections import defaultdict

from genmodels.data.fields import Record, Reject
from genmodels.data.sources.columns import Named
from genmodels.data.sources.listed import ListedSource
from genmodels.data.sources.names import (
    LAYOUTS,
    NOT_AN_IMAGE_FILE,
    SPLIT_NAMES,
    held_out_name,
    is_image_name,
    keys,
    printable,
)
from genmodels.data.sources.tables import Tables
from genmodels.data.sources.tree import Tree

DOMAIN_FOLDERS = {f"{split}{domain}": (domain, split) for split in ("train", "test") for domain in "AB"}


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


def _arrange(files: list[str], rejects: list[Reject], class_folders: bool) -> tuple[list[Record], str]:
    """The samples with what their folders say of them, and the layout's name."""
    tops: dict[str, list[str]] = defaultdict(list)
    for file in files:
        tops[file.split("/")[0] if "/" in file else ""].append(file)
    if {"trainA", "trainB"} <= tops.keys():
        return _arrange_domains(tops, rejects)
    if tops.keys() & {"trainA", "trainB"}:
        raise ValueError(f"source has {min(tops.keys() & {'trainA', 'trainB'})}/ alone; expected {LAYOUTS}")
    if held_out := held_out_name(tops.keys()):
        return _arrange_splits(tops, held_out, rejects, class_folders)
    loose = tops.pop("", [])
    if len(tops) < 2 or not class_folders:
        return [Record(key, file) for key, file in zip(keys(files), files, strict=True)], "flat folder"
    rejects += [Reject(file, "image beside the class folders") for file in loose]
    files = [file for top in tops.values() for file in top]
    records = [
        Record(key, file, label=printable(file.split("/")[0])) for key, file in zip(keys(files), files, strict=True)
    ]
    return records, f"one folder a class, {len(tops)} classes"


def _arrange_splits(
    tops: dict[str, list[str]], held_out: str, rejects: list[Reject], class_folders: bool
) -> tuple[list[Record], str]:
    """Samples whose top folder is their split: test/ is held out, val/ where there is no test/."""
    ignored = sorted(tops.keys() & (SPLIT_NAMES.keys() - {"train", held_out}))
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
        for key, file in zip(keys(files), files, strict=True)
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
    for key, file in zip(keys(files), files, strict=True):
        domain, split = DOMAIN_FOLDERS[file.split("/")[0]]
        records.append(Record(key, file, domain=domain, split=split if has_test else None))
    found = "/".join(top for top in DOMAIN_FOLDERS if top in tops)
    return records, f"domains {found}" + (f" (ignored: {', '.join(ignored)})" if ignored else "")
