"""Where images come from: the source that a configuration names."""

from __future__ import annotations

from pathlib import Path

from genmodels.config import DatasetConfig
from genmodels.data.fields import Source
from genmodels.data.folder import FolderSource
from genmodels.data.names import LAYOUTS
from genmodels.data.rendered import RenderedSource, RingSource
from genmodels.data.tree import is_url, open_tree

SPRITES = "sprites"  # the word for the embedded data set
RING = "ring"  # the word for points of the plane
RENDERED = (SPRITES, RING)  # sources that need no files
NUM_POINTS = 20_000  # of the ring, unless the configuration says otherwise


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
    return FolderSource(open_tree(config.source, root), config.attributes, config.label, config.split_by)


def is_available(config: DatasetConfig, root: Path) -> bool:
    """Whether the source can be opened here: rendered, behind a URL, or a folder of this machine."""
    if config.source in RENDERED or is_url(config.source):
        return True
    return (root / Path(config.source).expanduser()).is_dir()
