"""What a source offers: samples, and those left out; and the description of a data set that models are built from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from genmodels.data.images import Data


@dataclass(frozen=True)
class DataSpec:
    """What a model may know of its data set. Stored in the shards' manifest and in every export."""

    name: str
    channels: int  # 1 or 3; 2 for points of the plane, stored as images of one pixel
    image_size: int  # pixels; the size a model trains at (a training may choose a lower level of the pyramid)
    sizes: tuple[int, ...]  # sizes of the pyramid that lie on disk, ascending
    num_train: int  # images of the training split
    num_test: int  # images held out
    classes: tuple[str, ...] = ()  # class names; empty without labels
    attributes: tuple[str, ...] = ()  # names of the 0/1 attributes; empty without
    domains: tuple[str, ...] = ()  # names of unpaired domains, say ("A", "B"); empty without
    num_parts: int = 0  # key-part boxes an image; 0 without
    vocabulary: tuple[str, ...] = ()  # the words of the training captions; empty without captions
    num_captions: int = 0  # captions an image; where it has fewer they repeat
    num_words: int = 0  # tokens a caption, padding included
    group: str = ""  # what images of one `group` have in common: the column that split them; empty without
    fit: str = "crop"  # how images became square, were shrunk, and what was laid under them: see DatasetConfig
    resampling: str = "lanczos"
    background: tuple[int, int, int] = (255, 255, 255)
    digest: str = ""  # sha256 over the shards: the data's identity

    @property
    def keys(self) -> tuple[str, ...]:
        """The batch keys that this data set can serve; `image_A` is the stream of domain A alone."""
        offered = ["image"] + [f"image_{domain}" for domain in self.domains]
        optional = {
            "label": self.classes,
            "attributes": self.attributes,
            "parts": self.num_parts,
            "caption": self.vocabulary,
            "group": self.group,
        }
        return tuple(offered + [key for key, present in optional.items() if present])

    def domain_of_image(self, choice: str | None) -> str | None:
        """The domain that `image` is drawn from: the first unless chosen; None, so every image, for 'all'.

        ValueError when the data set has no such domain.
        """
        if choice not in (None, "all", *self.domains):
            raise ValueError(f"domain {choice!r}: data set {self.name} has domains {', '.join(self.domains) or 'none'}")
        if choice is None:
            return self.domains[0] if self.domains else None
        return None if choice == "all" else choice

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DataSpec:
        """Inverse of `to_json`."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**fields)


Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the image's sides


@dataclass(frozen=True, slots=True)
class Record:
    """One sample as a source offers it, before its pixels are read. Small and picklable."""

    key: str  # unique in the data set, of [A-Za-z0-9_/-]; names the sample in shards
    file: str  # path relative to the source, as the manifest shows it
    label: str | None = None
    attributes: dict[str, int] | None = None  # name -> 0 or 1
    captions: tuple[str, ...] = ()
    parts: tuple[Box, ...] = ()
    domain: str | None = None
    split: str | None = None  # "train" or "test"; None: by a hash of the group, of the content without one
    group: str | None = None  # images of one group are never split


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
