"""What the names of files say: which are images, the keys of their samples, and the split they belong to."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from genmodels.data.fields import Reject

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
NOT_AN_IMAGE_FILE = "not an image file"
A_PICKLE = "a pickle, which is never read"
NO_IMAGES = frozenset({NOT_AN_IMAGE_FILE, A_PICKLE})  # rejects that are no fault of the images
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)  # words for them, in any case; a number may follow
LAYOUTS = (
    "images in one folder, one sub-folder a class, train/ and test/ (or val/) of either, "
    "or trainA/ and trainB/ (and testA/, testB/); or archives: MNIST's idx-ubyte files, CIFAR's python batches, "
    ".parquet files, WebDataset's .tar files"
)
MAX_KEY = 80  # characters; with hash and extension a tar header holds the name
SPLIT_NAME = re.compile(rf"(?:^|[/_-])({'|'.join(SPLITS)})[0-9]*(?=[/_.-]|$)", re.IGNORECASE)


def is_image_name(file: str) -> bool:
    """Whether the file's name is that of an image."""
    return os.path.splitext(file)[1].lower() in EXTENSIONS


def split_of(name: str) -> str:
    """The split that a folder's name means: train, test or val; "" for none."""
    return SPLITS.get(name.lower().rstrip("0123456789"), "")


def held_out(splits: Collection[str]) -> str:
    """Which of these splits is held out beside `train`: test before val; "" where one side is missing."""
    return next((split for split in ("test", "val") if split in splits and "train" in splits), "")


def named_splits(files: Sequence[str]) -> tuple[dict[str, str | None], list[Reject], str]:
    """The split of each archive that is used, by its name or folder (train-0.tar, test/0.tar); rejects; a few words.

    Where there are not both, train and something held out, every split is None and all are used.
    """
    words = {file: (SPLIT_NAME.findall(file) or [""])[-1].lower() for file in files}
    named = {file: split_of(word) for file, word in words.items()}
    other = held_out(named.values())
    if not other:
        return dict.fromkeys(files), [], ""
    used = [file for split in ("train", other) for file in files if named[file] == split]
    splits: dict[str, str | None] = {file: "train" if named[file] == "train" else "test" for file in used}
    found = " and ".join(dict.fromkeys(words[file] for file in used))
    rejects = [Reject(file, f"neither {found.replace(' and ', ' nor ')}") for file in files if not words[file]]
    ignored = sorted({word for file, word in words.items() if word and file not in splits})
    return splits, rejects, f", {found}" + (f" (ignored: {', '.join(ignored)})" if ignored else "")


def keys(files: Sequence[str], places: Sequence[str] | None = None) -> list[str]:
    """Unique names of [A-Za-z0-9_/-]: the path without its extension, with a hash where that is not enough.

    `places` are what the hash is of, where several files may have one path.
    """
    stems = [os.path.splitext(file)[0] for file in files]
    plain = [re.sub(r"[^A-Za-z0-9_/-]", "_", stem)[:MAX_KEY] for stem in stems]
    count = Counter(plain)

    def key(place: str, stem: str, name: str) -> str:
        # A name that already looks hashed gets a hash too, so no file can take another's key.
        if name == stem and count[name] == 1 and not re.search(r"-x[0-9a-f]{12}$", name):
            return name
        return f"{name}-x{hashlib.sha256(os.fsencode(place)).hexdigest()[:12]}"

    return [key(*each) for each in zip(places or files, stems, plain, strict=True)]


def others(scan: Iterable[tuple[str, str | None]], used: Collection[str]) -> list[Reject]:
    """The files of a folder that its images do not come from."""
    return [Reject(file, refusal or NOT_AN_IMAGE_FILE) for file, refusal in scan if refusal or file not in used]


def printable(name: str) -> str:
    """`name` as valid Unicode: file names may hold any bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
