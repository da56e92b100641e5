"""Where images come from: the source that a configuration names."""

from __future__ import annotations

import os
from pathlib import Path

from genmodels.config import DatasetConfig
from genmodels.data.fields import Source
from genmodels.data.remote import is_url
from genmodels.data.sources.cifar import CifarSource, is_cifar
from genmodels.data.sources.columns import Named
from genmodels.data.sources.folder import FolderSource
from genmodels.data.sources.idx import IdxSource, is_idx, set_names
from genmodels.data.sources.names import LAYOUTS, is_image_name
from genmodels.data.sources.parquet_images import ParquetSource, is_parquet
from genmodels.data.sources.rendered import RenderedSource, RingSource
from genmodels.data.sources.tar_images import TarSource, is_tar
from genmodels.data.sources.tree import Tree, is_file, local_path, open_tree

SPRITES = "sprites"  # the word for the embedded data set
RING = "ring"  # the word for points of the plane
RENDERED = (SPRITES, RING)  # sources that need no files
NUM_POINTS = 20_000  # of the ring, unless the configuration says otherwise
# Archives by what their paths are like; of several kinds in a folder the first is read.
ARCHIVES = {"idx": is_idx, "parquet": is_parquet, "cifar": is_cifar, "tar": is_tar}


def open_source(config: DatasetConfig, root: Path) -> Source:
    """The source that `config.source` names; relative folders start at `root`.

    A file is an archive by its name, a folder what it holds: images before archives. ValueError names the source and
    the accepted layouts when it is missing or holds no images, and settings that it does not take.
    """
    if config.source in RENDERED:
        _refuse_columns(config, f"source {config.source!r}")
        if config.num_parts:
            raise ValueError(f"num_parts are found in images of a folder; source {config.source!r} takes none")
    if config.source == SPRITES:
        return RenderedSource(config.num_images or 6000, config.image_size)
    if config.source == RING:
        return RingSource(config.num_images or NUM_POINTS)
    if not is_available(config, root):
        what = str(local_path(config.source, root))
        raise ValueError(f"source {what!r} is no folder and no file; expected {LAYOUTS}")
    tree, kind = _detected(config.source, root)
    if kind in ("idx", "cifar"):
        _refuse_columns(config, f"source {config.source!r} ({'IDX files' if kind == 'idx' else 'batches of CIFAR'})")
        return IdxSource(tree) if kind == "idx" else CifarSource(tree)
    named = Named(config.attributes, config.label, config.split_by)
    if kind == "parquet":
        return ParquetSource(tree, named)
    if kind == "tar":
        return TarSource(tree, named)
    return FolderSource(tree, named)


def is_available(config: DatasetConfig, root: Path) -> bool:
    """Whether the source can be opened here: rendered, behind a URL, or a folder or file of this machine."""
    if config.source in RENDERED or is_url(config.source):
        return True
    path = local_path(config.source, root)
    return path.is_dir() or path.is_file()


def _refuse_columns(config: DatasetConfig, what: str) -> None:
    for setting in Named._fields:
        if getattr(config, setting) is not None:
            raise ValueError(f"{setting} names columns of tables; {what} has none")


def _detected(source: str, root: Path) -> tuple[Tree, str]:
    """The files that `source` names, and the kind of archive that they are; "" for images."""
    name = os.path.basename(source)
    kind = _kind(source)
    if (kind or not is_url(source)) and is_file(source, root):
        if not kind:
            raise ValueError(f"source {source!r} is a file, and none of those that are read; expected {LAYOUTS}")
        parent = source[: -len(name)] or "."
        return open_tree(parent, root, set_names(name) if kind == "idx" else (name,)), kind
    tree, kinds = open_tree(source, root), set[str]()
    for file, refusal in tree.scan():
        if not refusal and is_image_name(file):
            return tree, ""
        if not refusal:
            kinds.add(_kind(f"{tree.name}/{file}"))
    return tree, next((kind for kind in ARCHIVES if kind in kinds), "")


def _kind(path: str) -> str:
    """The kind of archive that a path is like; "" for none."""
    return next((kind for kind, is_like in ARCHIVES.items() if is_like(path)), "")
