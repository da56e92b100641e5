"""Data sets that the program renders itself: sprites, and the ring of Gaussians."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genmodels.data.fields import Record, Reject


class RenderedSource:
    """The embedded data set: `genmodels.data.sources.sprites`, imported only here."""

    groups: tuple[str, ...] = ()
    rejects: tuple[Reject, ...] = ()

    def __init__(self, num_images: int, size: int):
        from genmodels.data.sources.sprites import SpritesSource

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
        from genmodels.data.sources import sprite_kinds, sprites

        text = inspect.getsource(sprite_kinds) + inspect.getsource(sprites)
        return hashlib.sha256(text.encode()).hexdigest()


class RingSource:
    """Points of `genmodels.data.sources.ring` as images of one pixel and two channels, labelled by their mode."""

    attributes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    rejects: tuple[Reject, ...] = ()

    def __init__(self, num_images: int):
        import torch

        from genmodels.data.sources.ring import ring_centres, ring_points

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
