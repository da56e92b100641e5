"""WebDataset's tars: members of one stem are a sample, its image and what is said of it.

.png .jpg ...   the image
.cls            its class, a number or a word
.txt            captions, one a line
.json           label or class; caption, captions or text; attributes: {name: 0 or 1}; other values by name as columns

Members are found by their headers and read by their place: nothing is extracted, and nothing but text, JSON and images
is ever parsed.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from genmodels.data.fields import Record, Reject
from genmodels.data.sources.columns import Named
from genmodels.data.sources.listed import ListedSource, Piece
from genmodels.data.sources.names import A_PICKLE, NOT_AN_IMAGE_FILE, is_image_name, keys, named_splits, others
from genmodels.data.sources.tar_members import tar_members
from genmodels.data.sources.tar_texts import TEXTS, read_texts
from genmodels.data.sources.told import Told, summary
from genmodels.data.sources.tree import Tree, open_file

PACKED = (".tar.gz", ".tgz")
PICKLES = (".pyd", ".pth", ".pt", ".pickle", ".pkl")
MAX_IMAGE = 1 << 28  # bytes of a member
MAX_TEXT = 1 << 20


def is_tar(file: str) -> bool:
    """Whether the file's name is that of a tar."""
    return file.endswith((".tar", *PACKED))


@dataclass
class _Sample:
    """What the members of one stem are; `texts` by extension."""

    image: str | None = None
    place: tuple[int, int] = (0, 0)
    texts: dict[str, str | None] = field(default_factory=dict)  # None: no UTF-8
    members: set[str] = field(default_factory=set)


class TarSource(ListedSource):
    """Samples of one tar or of several; train-*.tar and test-*.tar (or val-*.tar) give the split.

    Members that are no sample's, and hostile ones, are rejects; a tar that is cut off is a ValueError.
    The columns that are named are values in the samples' .json.
    """

    def __init__(self, tree: Tree, named: Named):
        scan = list(tree.scan())
        tars = [file for file, refusal in scan if not refusal and file.endswith(".tar")]
        if not tars:
            raise ValueError(
                f"source {tree.name!r} holds compressed tars alone; unpack them to .tar, whose members have a place"
            )
        splits, rejects, found = named_splits(tars)
        rejects += others(scan, tars)
        wanted = named.columns()
        told, records = Told(), list[Piece]()
        for tar, split in splits.items():
            samples = _samples(tree, tar, rejects)
            records += _records(tar, split, samples.values(), told, wanted, rejects)
        records = _with_keys(records)
        roles = told.roles(named, f"the .json members of {tree.name}")
        described = roles.described(records, rejects)
        found = summary(f"WebDataset tars ({len(splits)}{found})", roles, described)
        super().__init__(tree, described, rejects, [file for file, _ in scan], found, roles.attributes)

    def read(self, record: Record) -> bytes:
        """The image member's bytes."""
        assert isinstance(record, Piece)
        data = self.tree.read(record.container, *record.place)
        if len(data) < record.place[1]:
            raise OSError(0, "file ends early")
        return data


def _records(
    tar: str,
    split: str | None,
    samples: Collection[_Sample],
    told: Told,
    wanted: Collection[str],
    rejects: list[Reject],
) -> list[Piece]:
    """A record, as yet without a key, for every sample with an image; what its texts say goes to `told`."""
    records = []
    for sample in (sample for sample in samples if sample.image):
        file = f"{tar}/{sample.image}"
        try:
            read_texts(sample.texts).note(told, wanted, file)
        except ValueError as error:
            rejects.append(Reject(file, str(error)))
        else:
            records.append(Piece("", file, split=split, container=tar, place=sample.place))
    alone = sorted(name for sample in samples if not sample.image for name in sample.members)
    rejects += [Reject(f"{tar}/{name}", "no image beside it") for name in alone]
    return records


def _with_keys(records: list[Piece]) -> list[Piece]:
    """Keys without the tars' extension; b/0.png of a.tar and 0.png of a/b.tar would have one."""
    inside = [os.path.splitext(each.container)[0] + each.file[len(each.container) :] for each in records]
    names = keys(inside, [each.file for each in records])
    return [replace(each, key=key) for key, each in zip(names, records, strict=True)]


def _samples(tree: Tree, tar: str, rejects: list[Reject]) -> dict[str, _Sample]:
    """The tar's samples by stem; members that belong to none go to `rejects`."""
    samples: dict[str, _Sample] = defaultdict(_Sample)
    with open_file(tree, tar) as file:
        for member in tar_members(file, f"{tree.name}/{tar}"):
            name = os.path.normpath(member.name)
            if member.isdir() or any(part.startswith(".") and part != ".." for part in name.split("/")):
                continue  # hidden members are skipped, as hidden files are
            stem, _, ending = name.rpartition("/")[2].partition(".")
            sample = samples[f"{os.path.dirname(name)}/{stem}"]
            if reason := _refusal(member, name, ending, sample):
                rejects.append(Reject(f"{tar}/{member.name}", reason))
                continue
            sample.members.add(name)
            if ending.lower() in TEXTS:
                sample.texts[ending.lower()] = _text(file, member)
            else:
                sample.image, sample.place = name, (member.offset_data, member.size)
    return samples


def _refusal(member: tarfile.TarInfo, name: str, ending: str, sample: _Sample) -> str | None:
    """Why the member is not used, if it is not."""
    is_text, is_image = ending.lower() in TEXTS, is_image_name(name)
    if not member.isreg() or member.issparse():
        return "not a regular file"
    if name.startswith("/") or name.split("/")[0] == "..":
        return "path out of the archive"
    if name.lower().endswith(PICKLES):
        return A_PICKLE
    if not is_text and not is_image:
        return NOT_AN_IMAGE_FILE
    if name in sample.members:
        return "its name comes twice"
    if is_image and "." in ending:
        return "several dots: a sample's name ends at the first"
    if is_image and sample.image:
        return "second image of its sample"
    limit = MAX_TEXT if is_text else MAX_IMAGE
    return f"larger than {limit:,} bytes" if member.size > limit else None


def _text(file: io.BufferedReader, member: tarfile.TarInfo) -> str | None:
    file.seek(member.offset_data)
    try:
        return file.read(member.size).removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError:
        return None
