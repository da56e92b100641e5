"""What `genmodels.data.inspection` finds in a prepared data set, as plain values that JSON holds."""

from __future__ import annotations

from dataclasses import dataclass

from genmodels.data.fields import DataSpec


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of some numbers."""

    least: float
    median: float
    most: float


@dataclass(frozen=True)
class Count:
    """How many of something."""

    name: str
    number: int


@dataclass(frozen=True)
class Sides:
    """How many of something in each split."""

    name: str
    train: int
    test: int


@dataclass(frozen=True)
class Reason:
    """Why files were left out, how many, and the first of them."""

    reason: str
    number: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Groups:
    """Images that share the value of a column."""

    column: str
    train: int  # groups
    test: int
    straddling: int  # groups with images on both sides: must be 0
    images: Spread  # a group


@dataclass(frozen=True)
class Attributes:
    """How often each attribute is 1."""

    counts: tuple[Sides, ...]
    together: tuple[tuple[int, ...], ...]  # images with attributes i and j; empty where there are many attributes


@dataclass(frozen=True)
class Captions:
    """What the captions are made of."""

    number: int
    an_image: Spread
    words: Spread  # a caption
    vocabulary: int
    cut: int  # captions longer than the tokens that a batch has room for
    frequent: tuple[Count, ...]
    unknown: float  # share of the held-out captions' words that no training caption has
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Originals:
    """The files as they were found: pixels and bytes."""

    width: Spread
    height: Spread
    aspect: Spread  # width / height
    shorter: tuple[Count, ...]  # histogram of the shorter side
    shapes: tuple[Count, ...]  # histogram of width / height
    enlarged: int  # smaller than the samples made of them
    bytes: Spread
    total_bytes: int


@dataclass(frozen=True)
class Copy:
    """Files of equal content."""

    number: int
    train: int
    test: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Copies:
    """Files of equal content: those beyond the first, the groups that they form, and the groups in both splits."""

    images: int
    groups: int
    straddling: int  # must be 0: the held-out images would not be unseen
    largest: tuple[Copy, ...]  # those that straddle first


@dataclass(frozen=True)
class PixelValues:
    """Mean and standard deviation of each channel in [-1, 1], of training images at the largest size."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int


@dataclass(frozen=True)
class Inspection:
    """Everything that `inspect` finds."""

    spec: DataSpec
    source: str
    encoding: str
    found: int  # files; accepted + rejected
    accepted: int
    rejected: int
    reasons: tuple[Reason, ...]  # most frequent first
    classes: tuple[Sides, ...]
    domains: tuple[Sides, ...]
    groups: Groups | None
    attributes: Attributes | None
    captions: Captions | None
    originals: Originals | None  # None for what was no file: points
    copies: Copies
    pixels: PixelValues
