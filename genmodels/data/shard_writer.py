"""Samples into tar shards: the same samples give the same bytes, and a killed writer goes on where it was."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from genmodels.data.images import Pixels
from genmodels.data.shards import SAVE_AS, ShardFile, shard_name

BLOCK = tarfile.BLOCKSIZE


class Packed(NamedTuple):
    """One sample at one size as it stands in a tar, and where in that its image's payload lies."""

    blob: bytes
    offset: int
    length: int


def pack(key: str, levels: dict[int, Pixels], encoding: str, about: dict[str, Any]) -> dict[int, Packed]:
    """Tar members of one sample by size: image (uint8 [H, W, C]) and JSON. The same input gives the same bytes."""
    text = _member(f"{key}.json", json.dumps(about, sort_keys=True).encode())
    packed = {}
    for size, pixels in sorted(levels.items()):
        header, payload = _encode(pixels, encoding)
        image = _member(f"{key}.{'npy' if encoding == 'raw' else encoding}", header + payload)
        packed[size] = Packed(image + text, BLOCK + len(header), len(payload))
    return packed


def _encode(pixels: Pixels, encoding: str) -> tuple[bytes, bytes]:
    """The member's header, where it is a .npy, and payload."""
    if encoding == "raw":
        return _npy_header(pixels.shape), pixels.tobytes()
    stream = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(stream, **SAVE_AS[encoding])
    return b"", stream.getvalue()


@cache
def _npy_header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _member(name: str, data: bytes) -> bytes:
    """A file of a tar, exactly as tarfile writes it (mtime, uid and gid 0, mode 0644), at a fifth of its time."""
    header, plain = bytearray(_blank_header()), name.encode("ascii")
    assert len(plain) <= 100
    header[: len(plain)] = plain
    header[124:135] = b"%011o" % len(data)
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % BLOCK)


@cache
def _blank_header() -> bytes:
    """The header of an empty file without a name; its checksum is blank, as it counts in the sum."""
    header = bytearray(tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
    header[148:156] = b" " * 8
    return bytes(header)


class ShardWriter:
    """Writes one split, streaming: one tar a size for each `shard_size` samples."""

    def __init__(self, folder: Path, split: str, shard_size: int):
        self.folder, self.split, self.shard_size = folder, split, shard_size
        self.shards: list[ShardFile] = []
        self.num_samples = 0
        self._tars: dict[int, _Tar] = {}

    def add(self, packed: dict[int, Packed]) -> tuple[int, int, dict[int, tuple[int, int]]]:
        """Appends one sample, at every size; returns its shard, its row, and by size its payload's place."""
        shard, row = divmod(self.num_samples, self.shard_size)
        if row == 0:
            self.close()
            self._tars = {size: _Tar(self.folder / shard_name(self.split, size, shard)) for size in packed}
        starts = {size: self._tars[size].append(sample.blob) for size, sample in packed.items()}
        self.num_samples += 1
        return shard, row, {size: (start + packed[size].offset, packed[size].length) for size, start in starts.items()}

    def close(self) -> None:
        """Ends the shards that are open."""
        for size, tar in self._tars.items():
            num_bytes, sha256 = tar.close()
            num = (self.num_samples - 1) % self.shard_size + 1
            self.shards.append(ShardFile(tar.path.name, self.split, size, num, num_bytes, sha256))
        self._tars = {}

    def state(self) -> dict[str, Any]:
        """Where this writer is, all of it durable on disk."""
        return {
            "num_samples": self.num_samples,
            "shards": self.shards,
            "open": {size: tar.sync() for size, tar in self._tars.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` returned: what was written since is cut off."""
        self.num_samples, self.shards = state["num_samples"], [ShardFile(*shard) for shard in state["shards"]]
        shard = (self.num_samples - 1) // self.shard_size
        for size, num_bytes in state["open"].items():
            self._tars[int(size)] = _Tar(self.folder / shard_name(self.split, int(size), shard), num_bytes)

    @property
    def files(self) -> list[str]:
        """Names of the shards written so far, ended or open."""
        return [shard.name for shard in self.shards] + [tar.path.name for tar in self._tars.values()]

    def abort(self) -> None:
        """Lets go of open files."""
        for tar in self._tars.values():
            tar.file.close()
        self._tars = {}


class _Tar:
    """A tar in the making: its bytes go to disk and into the hash once. Goes on after its first `bytes`."""

    def __init__(self, path: Path, num_bytes: int = 0):
        self.path, self.bytes = path, num_bytes
        self.file: BinaryIO = path.open("r+b" if num_bytes else "wb")
        self.file.truncate(num_bytes)
        self._hash = hashlib.sha256()
        while piece := self.file.read(1 << 20) if num_bytes else b"":
            self._hash.update(piece)

    def append(self, blob: bytes) -> int:
        """Writes `blob`; returns where it starts."""
        start = self.bytes
        self.file.write(blob)
        self._hash.update(blob)
        self.bytes += len(blob)
        return start

    def sync(self) -> int:
        """Makes what was written durable; returns its length."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.bytes

    def close(self) -> tuple[int, str]:
        """Ends the archive; returns its length and sha256."""
        end = self.bytes + 2 * BLOCK
        self.append(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))
        self.sync()
        self.file.close()
        return self.bytes, self._hash.hexdigest()
