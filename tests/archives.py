"""Archives of images as their owners write them, and what is read back of them."""

import gzip
import hashlib
import io
import json
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from genmodels.config import DatasetConfig
from genmodels.data.fields import DataSpec, Source
from genmodels.data.prepare import prepare
from genmodels.data.reader import ShardReader
from genmodels.data.shards import open_shards
from genmodels.data.sources import open_source

SHARED = Path(__file__).parents[3] / "shared/data"
CLASSES = ("bird", "cat", "dog")

Images = NDArray[np.uint8]  # [N, H, W] or [N, H, W, 3]


def noise(num: int, *shape: int, seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), np.uint8)


def png(pixels: Images) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def opened(source: Path | str, **settings: object) -> Source:
    return open_source(DatasetConfig(source=str(source), **settings), Path("/"))


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    message = str(error.value)
    assert "\n" not in message and message.isprintable(), message
    return message


def refused(source: Path | str, match: str, **settings: object) -> None:
    with pytest.raises(ValueError, match=match) as error:
        opened(source, **settings)
    one_line(error)


def made(out: Path, source: Path | str, processes: int = 1, **settings: object) -> DataSpec:
    values = {"image_size": 8, "shard_size": 5, "holdout": 0, "max_reject_fraction": 0, **settings}
    return prepare("toy", DatasetConfig(source=str(source), **values), out, Path("/"), processes)


def samples(out: Path) -> Counter:
    """Every sample of a data set: its split, class, captions and pixels."""
    spec, found = open_shards(out).spec, Counter()
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    for split in ("train", "test"):
        of_split = sorted((row for row in rows if row["split"] == split), key=lambda row: (row["shard"], row["row"]))
        if of_split:
            reader = ShardReader(out, split, spec.image_size)
            images = reader.read(np.arange(reader.num))
            for row, image in zip(of_split, images, strict=True):
                found[split, row["class"], tuple(row["captions"]), np.asarray(image).tobytes()] += 1
    return found


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if path.name != "dataset.json"]  # it holds the fingerprint
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Writers of the archives


def idx(values: Images) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + b"".join(side.to_bytes(4, "big") for side in values.shape) + values.tobytes()


def write_mnist(
    folder: Path, train: Images, test: Images, labels: list[int] | None, prefix: str = "", pack=True
) -> Path:
    """Labels of train and test together, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = np.array(labels or [], np.uint8)
    files = {"train-images-idx3-ubyte": train, "t10k-images-idx3-ubyte": test}
    if labels is not None:
        files |= {"train-labels-idx1-ubyte": digits[: len(train)], "t10k-labels-idx1-ubyte": digits[len(train) :]}
    for name, values in files.items():
        data = idx(values)
        (folder / f"{prefix}{name}{'.gz' if pack else ''}").write_bytes(gzip.compress(data, 1) if pack else data)
    return folder


def cifar_batch(images: Images, labels: list[int], key: str = "labels", protocol: int = 2) -> bytes:
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return pickle.dumps({"data": rows, key: labels, "batch_label": b"1 of 1", "filenames": [b"x"]}, protocol)


def cifar_files(train: Images, test: Images, labels: list[int]) -> dict[str, bytes]:
    half = len(train) // 2
    meta = pickle.dumps({"label_names": list(CLASSES), "num_cases_per_batch": 10000, "num_vis": 3072}, 2)
    return {
        "batches.meta": meta,
        "data_batch_1": cifar_batch(train[:half], labels[:half]),
        "data_batch_2": cifar_batch(train[half:], labels[half : len(train)]),
        "test_batch": cifar_batch(test, labels[len(train) :]),
        "readme.html": b"<html>",
    }


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, members: dict[str, bytes] | list, mode: str = "w") -> Path:
    """Members as name -> data; or a list of (name or TarInfo, data)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = info.size or len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path: Path, names: list[str] | None = None, row_group: int = 3, **columns: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=row_group)
    return path


def expected(train: Images, test: Images, classes: list[str | None]) -> Counter:
    splits = ["train"] * len(train) + ["test"] * len(test)
    pixels = [image.reshape(*image.shape[:2], -1).tobytes() for image in (*train, *test)]
    return Counter((split, name, (), image) for split, name, image in zip(splits, classes, pixels, strict=True))


def pair(stem: str, image: bytes, **texts: bytes) -> list[tuple[str, bytes]]:
    return [(f"{stem}.png", image), *((f"{stem}.{ending}", data) for ending, data in texts.items())]


class Evil:
    def __init__(self, call: object, *args: object):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args
