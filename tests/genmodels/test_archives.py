"""Archives become records: IDX files, CIFAR's batches, Parquet and WebDataset's tars, whole, odd and hostile."""

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import tarfile
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from genmodels.config import DatasetConfig
from genmodels.data.decode import Decoder, Sample
from genmodels.data.fields import DataSpec, Source
from genmodels.data.prepare import prepare
from genmodels.data.reader import ShardReader
from genmodels.data.shards import open_shards
from genmodels.data.sources import open_source
from genmodels.data.sources.names import LAYOUTS
from genmodels.data.sources.tree import LocalTree, open_file, open_tree

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


# Trees


def test_ranges_of_a_file_are_the_same_here_and_behind_a_url(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(range(200)))
    fsspec.filesystem("memory").put(str(tmp_path / "a.bin"), "/ranges/a.bin")
    for tree in (LocalTree(tmp_path), open_tree("memory://ranges", tmp_path)):
        assert tree.read("a.bin") == bytes(range(200)) and tree.size("a.bin") == 200
        assert tree.read("a.bin", 5, 3) == bytes([5, 6, 7]) and tree.read("a.bin", 5, 0) == b""
        assert tree.read("a.bin", 198, 9) == bytes([198, 199]) and tree.read("a.bin", 198) == bytes([198, 199])
        with open_file(tree, "a.bin") as file:
            file.seek(-2, os.SEEK_END)
            assert file.read() == bytes([198, 199])
            file.seek(10)
            assert file.read(2) == bytes([10, 11]) and file.tell() == 12 and len(file.read()) == 188


# IDX


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("prefix", ["", "emnist-letters-"])
def test_idx_files_are_split_labelled_and_exact(tmp_path, pack, prefix):
    train, test = noise(11, 8, 8), noise(5, 8, 8, seed=1)
    labels = [number % 12 for number in range(16)]
    write_mnist(tmp_path / "MNIST/raw", train, test, labels, prefix, pack)
    spec = made(tmp_path / "out", tmp_path / "MNIST", channels=1)
    assert (spec.num_train, spec.num_test) == (11, 5) and set(spec.classes) == {str(label) for label in labels}
    assert samples(tmp_path / "out") == expected(train, test, [str(label) for label in labels])
    counts = open_shards(tmp_path / "out").counts
    assert counts["found"] == counts["accepted"] + counts["rejected"] == 16
    assert "IDX files" in open_shards(tmp_path / "out").source


def test_idx_bytes_do_not_depend_on_packing(tmp_path):
    train, test = noise(20, 8, 8), noise(9, 8, 8, seed=1)
    for pack in (True, False):
        source = write_mnist(tmp_path / f"s{pack}", train, test, [1] * 29, pack=pack)
        made(tmp_path / f"out{pack}", source, channels=1)
    assert (tmp_path / "outTrue/train-8-00000.tar").read_bytes() == (
        tmp_path / "outFalse/train-8-00000.tar"
    ).read_bytes()
    assert open_shards(tmp_path / "outTrue").spec == open_shards(tmp_path / "outFalse").spec


def test_idx_without_labels_with_dots_and_beside_its_archive(tmp_path):
    source = write_mnist(tmp_path / "raw", noise(3, 8, 8), noise(2, 8, 8), None, pack=False)
    assert opened(source).classes == () and "without labels" in opened(source).describe()
    for file in list(source.iterdir()):
        (source / f"{file.name}.gz").write_bytes(b"not even read: its plain copy is there")
        file.rename(source / file.name.replace("-idx", ".idx"))
    records = list(opened(source).records())
    assert {record.container for record in records} == {"train-images.idx3-ubyte", "t10k-images.idx3-ubyte"}
    assert len(opened(source).rejects) == 2


def test_of_several_idx_sets_one_is_named_by_a_file(tmp_path):
    for prefix, num in (("emnist-letters-", 3), ("emnist-digits-", 4)):
        write_mnist(tmp_path, noise(num, 8, 8), noise(2, 8, 8), [0] * (num + 2), prefix)
    refused(tmp_path, "several sets of IDX files.*emnist-digits-t10k-images-idx3-ubyte.gz")
    source = opened(tmp_path / "emnist-letters-train-images-idx3-ubyte.gz")
    assert [record.split for record in source.records()] == ["train"] * 3 + ["test"] * 2 and source.rejects == ()


def test_one_idx_file_leaves_the_split_to_the_holdout(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(noise(4, 8, 8)))
    assert {record.split for record in opened(tmp_path).records()} == {None}


IDX_IMAGES = idx(noise(3, 8, 8))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train-images-idx3-ubyte", IDX_IMAGES[:-1], "208 bytes, the file has 207"),
        ("train-images-idx3-ubyte", IDX_IMAGES + b"x", "208 bytes, the file has 209"),
        ("train-images-idx3-ubyte", b"", "starts with nothing"),
        ("train-images-idx3-ubyte", b"\x80\x04" + IDX_IMAGES, "no IDX file of bytes in 3 dimensions"),
        ("train-images-idx3-ubyte", idx(noise(3, 8)), "no IDX file of bytes in 3 dimensions"),
        ("train-images-idx3-ubyte", bytes([0, 0, 8, 3]) + b"\xff" * 12, "4294967295x4294967295 pixels"),
        ("train-images-idx3-ubyte.gz", IDX_IMAGES, "no gzip file"),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(bytes([0, 0, 8, 3]) + b"\x7f\xff\xff\xff\0\0\0\x20\0\0\0\x20"),
            "the file has",
        ),
        ("train-labels-idx1-ubyte", idx(np.zeros(3, np.uint8)), "labels of IDX files, and no images"),
    ],
)
def test_a_damaged_idx_file_is_one_line(tmp_path, name, data, message):
    write_files(tmp_path, {name: data})
    refused(tmp_path, message)


@pytest.mark.parametrize("cut", [lambda data: data[:-9], lambda data: data[:-1] + b"\xff", lambda data: data[:60]])
def test_a_damaged_idx_archive_stops_the_preparation(tmp_path, cut):
    write_files(tmp_path / "s", {"train-images-idx3-ubyte.gz": cut(gzip.compress(idx(noise(30, 8, 8))))})
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: damaged") as error:
        made(tmp_path / "out", tmp_path / "s", 1)
    one_line(error)
    assert not (tmp_path / "out").exists()


def test_an_idx_archive_that_holds_more_than_it_says_is_refused(tmp_path):
    write_files(tmp_path / "s", {"train-images-idx3-ubyte.gz": gzip.compress(IDX_IMAGES + bytes(10**7))})
    with pytest.raises(ValueError, match="208 bytes, the file has more"):
        made(tmp_path / "out", tmp_path / "s")


def test_idx_labels_of_another_number_are_refused(tmp_path):
    source = write_mnist(tmp_path, noise(3, 8, 8), noise(2, 8, 8), [0] * 5)
    (source / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(4, np.uint8))))
    refused(source, r"train-labels-idx1-ubyte\.gz: 4 labels for the 3 images")


# CIFAR


@pytest.fixture
def cifar_images() -> tuple[Images, Images, list[int]]:
    return noise(8, 32, 32, 3), noise(4, 32, 32, 3, seed=1), [number % 3 for number in range(12)]


@pytest.mark.parametrize("layout", ["archive", "named", "folder", "unpacked"])
def test_cifar_batches_are_split_labelled_and_exact(tmp_path, cifar_images, layout):
    files = {f"cifar-10-batches-py/{name}": data for name, data in cifar_files(*cifar_images).items()}
    source = write_files(tmp_path / "s", files) if layout in ("folder", "unpacked") else tmp_path / "s"
    if layout in ("archive", "named"):
        write_tar(source / "cifar-10-python.tar.gz", files, "w:gz")
    source = {"named": source / "cifar-10-python.tar.gz", "unpacked": source / "cifar-10-batches-py"}.get(
        layout, source
    )
    spec = made(tmp_path / "out", source, image_size=32)
    train, test, labels = cifar_images
    assert spec.classes == CLASSES and (spec.num_train, spec.num_test) == (8, 4)
    assert samples(tmp_path / "out") == expected(train, test, [CLASSES[label] for label in labels])
    assert open_shards(tmp_path / "out").source == "cifar-10-batches-py: 12 images"


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_cifar_100_and_every_protocol_are_read(tmp_path, cifar_images, protocol):
    train, test, labels = cifar_images
    meta = pickle.dumps({"fine_label_names": list(CLASSES), "coarse_label_names": ["animal"]}, protocol)
    train_file = cifar_batch(train, labels[:8], "fine_labels", protocol)
    files = {"train": train_file, "test": cifar_batch(test, labels[8:], "fine_labels", protocol), "meta": meta}
    write_files(tmp_path / "cifar-100-python", files)
    assert Counter((record.split, record.label) for record in opened(tmp_path).records()) == Counter(
        (split, CLASSES[label]) for split, label in zip(["train"] * 8 + ["test"] * 4, labels, strict=True)
    )


# As Python 2 and numpy 1 wrote CIFAR: text and arrays' values are strings of bytes.
OF_PYTHON_2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05"
    b"U\x01bq\x06\x87q\x07Rq\x08(K\x01K\x01M\x00\x0c\x86q\tcnumpy\ndtype\nq\nU\x02u1q\x0bK\x00K\x01\x87q\x0cRq\r("
    b"K\x03U\x01|q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89T\x00\x0c\x00\x00" + bytes(3072) + b"q\x10"
    b"tq\x11bU\x06labelsq\x12]q\x13K\x01au."
)


def test_a_batch_of_python_2_is_read(tmp_path):
    meta = b"\x80\x02}U\x0blabel_names](U\x03catU\x03doges."
    source = write_files(tmp_path, {"batches.meta": meta, "data_batch_1": OF_PYTHON_2})
    (record,) = opened(source).records()
    image = opened(source).read(record)
    assert record.label == "dog" and isinstance(image, Image.Image) and image.getextrema() == ((0, 0),) * 3


class Evil:
    def __init__(self, call: object, *args: object):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (pickle.dumps(Evil(os.system, "touch executed")), "posix.system, which is refused"),
        (pickle.dumps({"data": Evil(eval, "open('executed', 'w')")}), "builtins.eval, which is refused"),
        (pickle.dumps(Evil(np.load, "executed")), "numpy.load, which is refused"),
        (b"cnumpy.core.multiarray\nscalar\n.", "multiarray.scalar, which is refused"),
        (b"cnumpy\nndarray.tofile\n.", "ndarray.tofile, which is refused"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0ecore.os.system\x93.", "which is refused"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00rottR.", "text in 'rot'"),
        (b"\x80\x02cnumpy\ndtype\n}X\x04\x00\x00\x00codeK\x01sb.", "missing 1 required"),  # sets the class's own state
        (b"\x80\x02c_codecs\nencode\nN}X\x07\x00\x00\x00__new__K\x01s\x86b.", "missing 1 required"),
        (b"(lp0\n0r\xff\xff\xff\x7f.", "data_batch_1: "),  # a memo of two thousand million places
        (b"\x80\x05\x96" + b"\xff" * 6 + b"\0\0.", "data_batch_1: "),  # an array of bytes as large as memory
        (b"\x80\x02", "data_batch_1: "),
        (b"", "data_batch_1: "),
        (b"\x80\x02]q\x00h\x00a.", "no mapping"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.float32), "labels": [0]}), "values than bytes"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8).T, "labels": [0]}), "bytes in rows"),
        (pickle.dumps({"data": np.zeros((1, 3071), np.uint8), "labels": [0]}), "no rows of 3072 bytes"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, 2), "1 labels for 2 images"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": ["0"]}, 2), "no list of numbers 'labels'"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [3]}, 2), "label 3, but batches.meta names 3"),
    ],
)
def test_a_hostile_batch_is_refused_and_runs_nothing(tmp_path, monkeypatch, batch, message):
    monkeypatch.chdir(tmp_path)
    files = cifar_files(noise(2, 32, 32, 3), noise(1, 32, 32, 3), [0, 1, 2])
    source = write_files(tmp_path / "cifar-10-batches-py", files | {"data_batch_1": batch})
    refused(source, re.escape(message))
    assert not (tmp_path / "executed").exists()
    (source / "data_batch_1").write_bytes(files["data_batch_1"])
    assert len(list(opened(source).records())) == 3  # the next file is read as ever


def test_a_damaged_cifar_archive_is_one_line(tmp_path, cifar_images):
    files = {f"cifar-10-batches-py/{name}": data for name, data in cifar_files(*cifar_images).items()}
    path = write_tar(tmp_path / "cifar-10-python.tar.gz", files, "w:gz")
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"text", gzip.compress(b"text"), gzip.compress(bytes(1024))):
        path.write_bytes(data)
        refused(tmp_path, r"cifar-10-python\.tar\.gz: ")
    write_tar(
        path,
        list(files.items()) + [("cifar-10-batches-py/test_batch", files["cifar-10-batches-py/test_batch"])],
        "w:gz",
    )
    refused(tmp_path, "test_batch: comes twice")
    large = tarfile.TarInfo("cifar-10-batches-py/test_batch")
    large.size = 1 << 40
    path.write_bytes(gzip.compress(large.tobuf()))
    refused(tmp_path, "unpacks to more than")
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"")
    refused(tmp_path, "both CIFAR-10 and CIFAR-100")


def test_cifar_without_its_class_names_or_batches_is_named(tmp_path):
    files = cifar_files(noise(2, 32, 32, 3), noise(1, 32, 32, 3), [0, 1, 2])
    refused(write_files(tmp_path / "a", {"batches.meta": files["batches.meta"]}), "no batches of images")
    write_tar(tmp_path / "b/cifar-10-python.tar.gz", {"cifar-10-batches-py/test_batch": files["test_batch"]}, "w:gz")
    refused(tmp_path / "b", "no batches.meta")


# Parquet


def test_hugging_face_parquet_is_split_labelled_and_exact(tmp_path):
    train, test = noise(7, 8, 8, 3), noise(4, 8, 8, 3, seed=1)
    labels = [number % 3 for number in range(11)]
    images = [{"bytes": png(image), "path": None} for image in (*train, *test)]
    for name, part in (
        ("train-00000-of-00002", slice(0, 4)),
        ("train-00001-of-00002", slice(4, 7)),
        ("test-00000-of-00001", slice(7, 11)),
    ):
        write_parquet(tmp_path / f"s/data/{name}.parquet", list(CLASSES), image=images[part], label=labels[part])
    write_parquet(tmp_path / "s/data/validation-00000-of-00001.parquet", list(CLASSES), image=images[:2], label=[0, 0])
    (tmp_path / "s/README.md").write_text("a data set card")
    spec = made(tmp_path / "out", tmp_path / "s")
    assert spec.classes == CLASSES and (spec.num_train, spec.num_test) == (7, 4)
    assert samples(tmp_path / "out") == expected(train, test, [CLASSES[label] for label in labels])
    manifest = open_shards(tmp_path / "out")
    assert manifest.counts["found"] == 12 and manifest.counts["rejects"] == {"not an image file": 1}
    assert manifest.source == "Parquet files (3, train and test (ignored: validation)): 11 images"


def test_parquet_bytes_do_not_depend_on_processes_or_row_groups(tmp_path):
    images = [png(image) for image in noise(40, 8, 8, 3)]
    for group, processes in ((1, 1), (7, 2), (40, 1)):
        write_parquet(tmp_path / f"{group}/a.parquet", None, group, jpg=images, caption=["a dog"] * 40)
        made(tmp_path / f"out/{group}", tmp_path / f"{group}/a.parquet", processes, holdout=0.2)
    assert contents(tmp_path / "out/1") == contents(tmp_path / "out/7") == contents(tmp_path / "out/40")


def test_columns_of_parquet_take_the_roles_of_tables(tmp_path):
    columns = {
        "image": [png(image) for image in noise(6, 8, 8, 3)],
        "caption": [["a cat", " a red cat "], ["dog"], ["x y"], ["z"], ["w"], ["v"]],
        "smiling": [True, False, True, False, True, False],
        "young": [1, -1, 1, 1, -1, 1],
        "tone": ["light", "dark", "light", "dark", "light", "dark"],
        "person": [1, 1, 2, 2, 3, 3],
        "class": ["a", "b", "a", "b", "a", "b"],
        "embedding": [[0.5]] * 6,
    }
    path = write_parquet(tmp_path / "a.parquet", **columns)
    source = opened(path)
    assert source.attributes == ("smiling", "young") and source.classes == ("a", "b") and source.groups == ()
    first = next(source.records())
    assert first.captions == ("a cat", "a red cat") and first.attributes == {"smiling": 1, "young": 1}
    source = opened(path, label="tone", attributes=("young", "person=2", "tone"), split_by="person")
    assert source.classes == ("dark", "light") and source.groups == ("1", "2", "3")
    assert source.attributes == ("young", "person_2", "tone_dark", "tone_light")
    assert "class = tone" in source.describe() and "split by person" in source.describe()
    spec = made(tmp_path / "out", path, split_by="person", holdout=0.4)
    assert set(spec.keys) == {"image", "label", "attributes", "caption", "group"}
    for settings, message in (
        (
            {"label": "tones"},
            "label: no column 'tones' .did you mean 'tone'.*choices: smiling, young, tone, person, class",
        ),
        ({"attributes": ("nothing=1",)}, "attributes: no column 'nothing'"),
        ({"split_by": "embedding"}, "split_by: column 'embedding' of .* holds list"),
        ({"attributes": ("person=9",)}, "no '9' in column 'person'"),
    ):
        refused(path, message, **settings)


def test_rows_without_image_label_or_caption_are_rejects_and_counts_add_up(tmp_path):
    good = [png(image) for image in noise(8, 8, 8, 3)]
    images = [{"bytes": data, "path": "x.png"} for data in [*good[:5], b"", b"no image", good[7]]] + [
        None,
        {"bytes": None, "path": "y.png"},
    ]
    labels = [0, 1, 0, 1, -1, 0, 0, None, 0, 0]
    source = write_parquet(tmp_path / "s/a.parquet", ["cat", "dog"], image=images, label=labels)
    made(tmp_path / "out", source, max_reject_fraction=0.9)
    counts = open_shards(tmp_path / "out").counts
    assert counts["rejects"] == {
        "cannot be read (the row holds no image bytes)": 3,
        "no label": 2,
        "not an image": 1,
    }
    assert counts["found"] == 10 == counts["accepted"] + counts["rejected"] == 4 + 6


def test_parquet_without_images_and_damaged_parquet_are_one_line(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", image=["cat.png"], size=[3])
    refused(path, r"no column of image bytes \(image, img.*found: image \(string\), size \(int64\)")
    whole = write_parquet(path, image=[png(image) for image in noise(9, 8, 8, 3)]).read_bytes()
    for data in (b"", whole[:100], whole[:-1], whole[: len(whole) // 2], b"PAR1" + b"\xff" * 64 + b"PAR1"):
        path.write_bytes(data)
        refused(path, r"a\.parquet: no Parquet, or damaged")
    middle = len(whole) // 4
    path.write_bytes(whole[:middle] + b"\xff" * 40 + whole[middle + 40 :])
    with pytest.raises(ValueError, match="a.parquet|unusable") as error:  # a page, or the images in it
        made(tmp_path / "out", path)
    one_line(error)


def test_a_flipped_byte_of_a_checksummed_page_is_found(tmp_path):
    table = pa.table({"image": [png(image) for image in noise(9, 8, 8, 3)]})
    pq.write_table(
        table,
        tmp_path / "a.parquet",
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet: no Parquet, or damaged"):
        made(tmp_path / "out", tmp_path / "a.parquet")


# WebDataset


def pair(stem: str, image: bytes, **texts: bytes) -> list[tuple[str, bytes]]:
    return [(f"{stem}.png", image), *((f"{stem}.{ending}", data) for ending, data in texts.items())]


@pytest.fixture
def tar_images() -> list[bytes]:
    return [png(image) for image in noise(12, 8, 8, 3)]


def test_tars_are_split_labelled_and_exact(tmp_path):
    train, test = noise(7, 8, 8, 3), noise(4, 8, 8, 3, seed=1)
    labels = [CLASSES[number % 3] for number in range(11)]
    members = [
        pair(f"{number:04d}", png(image), cls=label.encode())
        for number, (image, label) in enumerate(zip([*train, *test], labels, strict=True))
    ]
    for name, part in (("train-0", members[:4]), ("train-1", members[4:7]), ("val-0", members[7:])):
        write_tar(tmp_path / f"s/{name}.tar", [member for sample in part for member in sample])
    spec = made(tmp_path / "out", tmp_path / "s")
    assert spec.classes == CLASSES and (spec.num_train, spec.num_test) == (7, 4)
    assert samples(tmp_path / "out") == expected(train, test, labels)
    assert open_shards(tmp_path / "out").source == "WebDataset tars (3, train and val): 11 images"
    assert open_shards(tmp_path / "out").counts["found"] == 11


def test_texts_of_a_sample_give_class_captions_and_attributes(tmp_path, tar_images):
    def about(**values: object) -> bytes:
        return json.dumps(values).encode()

    members = [
        *pair("a/1", tar_images[0], json=about(label=3, caption="one", attributes={"big": 1, "red": False}, who="x")),
        *pair(
            "a/2",
            tar_images[1],
            json=about(label="no", captions=["two", ""], attributes={"big": -1, "red": 1}, who="y"),
            cls=b" 3\n",
        ),
        *pair(
            "b/1",
            tar_images[2],
            txt=b"\xef\xbb\xbfthree\r\n\n  drei\n",
            json=about(**{"class": 4}, text="t", attributes={"big": 0, "red": 0}, who="x"),
        ),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    source = opened(path)
    found = {record.file: (record.label, record.captions, record.attributes) for record in source.records()}
    assert found == {
        "a.tar/a/1.png": ("3", ("one",), {"big": 1, "red": 0}),
        "a.tar/a/2.png": ("3", ("two",), {"big": 0, "red": 1}),
        "a.tar/b/1.png": ("4", ("three", "drei"), {"big": 0, "red": 0}),
    }
    assert source.attributes == ("big", "red") and source.rejects == ()
    source = opened(path, label="who", attributes=("red",), split_by="who")
    assert source.classes == source.groups == ("x", "y") and source.attributes == ("red",)
    refused(path, "label: no column 'whom'.*did you mean 'who'", label="whom")


def link(name: str, kind: bytes, target: str = "/etc/passwd") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def test_hostile_members_are_rejects_and_the_rest_is_read(tmp_path, monkeypatch, tar_images):
    monkeypatch.chdir(tmp_path / "..")
    monkeypatch.setattr("genmodels.data.sources.tar_images.MAX_IMAGE", 5000)
    bomb = pickle.dumps(Evil(os.system, "touch executed"))
    members = [
        *pair("good", tar_images[0], cls=b"0"),
        ("../../outside.png", tar_images[1]),
        ("/tmp/absolute.png", tar_images[2]),
        ("a/../../up.png", tar_images[3]),
        link("soft.png", tarfile.SYMTYPE),
        link("hard.png", tarfile.LNKTYPE, "good.png"),
        link("device.png", tarfile.CHRTYPE),
        link("pipe.png", tarfile.FIFOTYPE),
        ("good.png", tar_images[4]),
        ("good.jpg", tar_images[5]),
        ("huge.png", bytes(5001)),
        ("good.pyd", bomb),
        ("good.pth", bomb),
        ("deep/good.pickle", bomb),
        ("deep/good.pkl", bomb),
        ("good.npy", b"\x93NUMPY"),
        ("photo.2020.png", tar_images[6]),
        ("alone.txt", b"no image"),
        ("folder/.hidden.png", tar_images[7]),
        ("./dot/plain.png", tar_images[8]),
        ("dot/plain.cls", b"1"),
        *pair("latin", tar_images[9], cls=b"caf\xe9"),
        *pair("json", tar_images[9], json=b"{" * 9),
        *pair("nested", tar_images[9], json=b"[" * 100_000),
        *pair("surrogate", tar_images[9], json=b'{"label": "\\ud800"}'),
        *pair("list", tar_images[9], json=b"[1]"),
        *pair("numbers", tar_images[9], json=b'{"caption": [1]}'),
        *pair("tones", tar_images[9], json=b'{"attributes": {"a": 7}}'),
        *pair("unlabelled", tar_images[9]),
    ]
    source = opened(write_tar(tmp_path / "in/a.tar", members))
    records = {record.file: record.label for record in source.records()}
    assert records == {"a.tar/good.png": "0", "a.tar/dot/plain.png": "1"}
    assert dict(Counter(reject.reason for reject in source.rejects)) == {
        "path out of the archive": 3,
        "not a regular file": 4,
        "its name comes twice": 1,
        "second image of its sample": 1,
        "larger than 5,000 bytes": 1,
        "a pickle, which is never read": 4,
        "not an image file": 1,
        "several dots: a sample's name ends at the first": 1,
        "no image beside it": 1,
        "its text is not UTF-8": 1,
        "its .json cannot be read": 3,
        "its .json is no object": 1,
        "its captions are no text": 1,
        "its attributes are not 0 or 1": 1,
        "no label": 1,
    }
    made(tmp_path / "out", tmp_path / "in", max_reject_fraction=1)
    counts = open_shards(tmp_path / "out").counts
    assert counts["found"] == counts["accepted"] + counts["rejected"] == 2 + len(source.rejects)
    assert not list(tmp_path.rglob("executed")) and not list(tmp_path.rglob("outside*"))


def test_pickles_beside_images_do_not_stop_the_preparation(tmp_path, tar_images):
    write_tar(
        tmp_path / "a.tar",
        [member for number, image in enumerate(tar_images) for member in pair(str(number), image, pyd=b"\x80\x04.")],
    )
    made(tmp_path / "out", tmp_path / "a.tar")
    assert open_shards(tmp_path / "out").counts["rejects"] == {"a pickle, which is never read": 12}


def test_long_odd_and_equal_names_get_safe_unique_keys(tmp_path, tar_images):
    names = ["a b.png", "a_b.png", "ü.png", "x" * 150 + ".png", f"{'deep/' * 40}y.png", "new\nline.png"]
    for tar in ("one.tar", "sub/one.tar"):
        write_tar(tmp_path / tar, dict(zip(names, tar_images, strict=False)))
    records = list(opened(tmp_path).records())
    keys = [record.key for record in records]
    assert len(set(keys)) == 12 and all(re.fullmatch(r"[A-Za-z0-9_/-]{1,95}", key) for key in keys)
    assert made(tmp_path / "out", tmp_path).num_train == 12


def test_a_tar_cut_at_any_block_is_refused_by_name(tmp_path, tar_images):
    path = write_tar(
        tmp_path / "a.tar", [*pair("1", tar_images[0], cls=b"0"), *pair("é" * 120, tar_images[1], cls=b"1")]
    )
    whole = path.read_bytes()
    end = max(place for place in range(0, len(whole), 512) if any(whole[place : place + 512])) + 512
    for size in (*range(0, end + 1, 512), 700, end - 100, end + 100):
        path.write_bytes(whole[:size])
        refused(path, r"a\.tar: ")
    path.write_bytes(whole[: end + 512])  # one block of zeros says that nothing is missing
    assert len(list(opened(path).records())) == 2


def header(**values: object) -> bytes:
    info = tarfile.TarInfo(str(values.pop("name", "x.png")))
    for key, value in values.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "data",
    [
        header(size=1 << 60) + bytes(1024),
        header(size=-512) + bytes(1024),
        header(size=-512, type=tarfile.GNUTYPE_LONGNAME) + bytes(1024),
        header(size=1 << 40, type=tarfile.GNUTYPE_LONGNAME) + bytes(1024),
        header(size=1 << 40, type=tarfile.XHDTYPE) + bytes(1024),
        header(size=0, type=tarfile.XHDTYPE) * 3000 + bytes(1024),
        header(size=10, type=tarfile.XHDTYPE) + b"99999 x=y\n".ljust(512, b"\0") + bytes(1024),
        header()[:-1] + b"x" + header()[:100].ljust(512, b"\1") + bytes(1024),
        b"text",
        b"\x1f\x8b" + bytes(2000),
    ],
)
def test_a_tar_of_absurd_headers_is_one_line(tmp_path, data):
    (tmp_path / "a.tar").write_bytes(data)
    refused(tmp_path / "a.tar", r"a\.tar: (no tar, or damaged|truncated or damaged)")


def test_compressed_tars_are_refused_with_what_to_do(tmp_path, tar_images):
    write_tar(tmp_path / "a.tar.gz", pair("1", tar_images[0]), "w:gz")
    refused(tmp_path, "compressed tars alone; unpack them")
    refused(tmp_path / "a.tar.gz", "compressed tars alone; unpack them")


# What is what


def test_images_win_and_archives_beside_them_are_rejects(tmp_path, tar_images):
    write_tar(tmp_path / "a.tar", pair("1", tar_images[0]))
    write_files(tmp_path, {"z/1.png": tar_images[1]})
    source = opened(tmp_path)
    assert source.describe() == "flat folder: 1 images" and source.rejects == (("a.tar", "not an image file"),)


@pytest.mark.parametrize("name", ["notes.txt", "one.png", "archive.zip"])
def test_a_file_that_is_no_archive_is_refused_with_the_layouts(tmp_path, name):
    write_files(tmp_path, {name: b"x"})
    refused(tmp_path / name, re.escape(LAYOUTS))


@pytest.mark.parametrize("setting", [{"label": "x"}, {"attributes": ("x",)}, {"split_by": "x"}])
def test_settings_without_effect_are_refused(tmp_path, cifar_images, setting):
    write_mnist(tmp_path / "mnist", noise(3, 8, 8), noise(2, 8, 8), None)
    write_files(tmp_path / "cifar", cifar_files(*cifar_images))
    for source in ("mnist", "cifar"):
        refused(tmp_path / source, f"{next(iter(setting))} names columns", **setting)


def test_every_archive_is_read_behind_a_url_and_changes_its_fingerprint(tmp_path, cifar_images, tar_images):
    write_mnist(tmp_path / "mnist", noise(3, 8, 8), noise(2, 8, 8), [0] * 5)
    write_files(tmp_path / "cifar", cifar_files(*cifar_images))
    write_parquet(tmp_path / "parquet/a.parquet", image=tar_images)
    write_tar(tmp_path / "tar/a.tar", pair("1", tar_images[0]))
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path), "/archives", recursive=True)
    for place in (
        "mnist",
        "cifar",
        "parquet",
        "tar",
        "parquet/a.parquet",
        "tar/a.tar",
        "mnist/t10k-images-idx3-ubyte.gz",
    ):
        near, far = opened(tmp_path / place), opened(f"memory://archives/{place}")
        assert list(near.records()) == list(far.records()) and near.rejects == far.rejects
        assert near.describe() == far.describe()
        for record in near.records():
            ours, theirs = near.read(record), far.read(record)
            assert ours == theirs
    before = opened("memory://archives/tar/a.tar").fingerprint()
    store.pipe_file(
        "/archives/tar/a.tar", write_tar(tmp_path / "b.tar", pair("2", tar_images[1] + bytes(9999))).read_bytes()
    )
    assert opened("memory://archives/tar/a.tar").fingerprint() != before


def test_workers_are_sent_no_pixels_and_decode_the_same(tmp_path, cifar_images, tar_images):
    write_mnist(tmp_path / "mnist", noise(300, 8, 8), noise(2, 8, 8), [0] * 302)
    write_files(tmp_path / "cifar", cifar_files(*cifar_images))
    write_parquet(tmp_path / "parquet/a.parquet", image=tar_images)
    write_tar(
        tmp_path / "tar/a.tar", [member for n in range(9) for member in pair(str(n), tar_images[n], txt=b"a cat")]
    )
    for place in ("mnist", "cifar", "parquet", "tar"):
        decoder = Decoder(opened(tmp_path / place), DatasetConfig(source=place, image_size=8), 0)
        records = list(decoder.source.records())
        sent = pickle.dumps(decoder)
        here, there = map(decoder, records), map(pickle.loads(sent), records)
        assert all(isinstance(one, Sample) and one == other for one, other in zip(here, there, strict=True))
        assert len(sent) < 4000


def test_unpacked_copies_end_with_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    source = opened(write_mnist(tmp_path / "mnist", noise(3, 8, 8), noise(2, 8, 8), None))
    source.read(next(source.records()))
    (folder,) = (tmp_path / "temporary").iterdir()
    assert len(list(folder.iterdir())) == 1
    del source
    assert not folder.exists()


def test_no_room_to_unpack_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("genmodels.data.sources.idx._unpack", full)
    source = write_mnist(tmp_path / "mnist", noise(3, 8, 8), noise(2, 8, 8), None)
    with pytest.raises(ValueError, match="no room to unpack 't.*TMPDIR") as error:
        made(tmp_path / "out", source)
    one_line(error)
    assert not [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]


def test_key_patches_are_found_in_every_archive(tmp_path):
    images = noise(4, 16, 16)
    source = write_mnist(tmp_path / "mnist", images, images[:2], None)
    spec = made(tmp_path / "out", source, num_parts=2, channels=1, image_size=16)
    assert spec.num_parts == 2 and ShardReader(tmp_path / "out", "train", 16).parts.shape == (4, 2, 4)


# Real images


def real_images(name: str, num: int) -> list[Path]:
    """As many of each class."""
    return [file for folder in sorted((SHARED / name).glob("*/")) for file in sorted(folder.iterdir())[: num // 10]]


@pytest.mark.skipif(not (SHARED / "mnist_10k").is_dir(), reason=f"{SHARED}/mnist_10k is absent")
def test_real_digits_are_the_same_in_every_archive(tmp_path):
    files = real_images("mnist_10k", 40)
    train, test, names = files[:30], files[30:], [file.parent.name for file in files]
    split = {file: "train" if file in train else "test" for file in files}
    write_files(
        tmp_path / "folder", {f"{split[file]}/{file.parent.name}/{file.name}": file.read_bytes() for file in files}
    )
    pixels = np.stack([np.asarray(Image.open(file).convert("L")) for file in files])
    write_mnist(tmp_path / "idx", pixels[:30], pixels[30:], [int(name) for name in names])
    for part, chosen in (("train", train), ("test", test)):
        members = [
            member for file in chosen for member in pair(file.stem, file.read_bytes(), cls=file.parent.name.encode())
        ]
        write_tar(tmp_path / f"tar/{part}-0.tar", members)
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in chosen]
        labels = [int(file.parent.name) for file in chosen]
        write_parquet(
            tmp_path / f"parquet/{part}-0.parquet", [str(digit) for digit in range(10)], image=images, label=labels
        )
    found = {}
    for kind in ("folder", "idx", "tar", "parquet"):
        made(tmp_path / f"out/{kind}", tmp_path / kind, image_size=28, channels=1)
        found[kind] = samples(tmp_path / f"out/{kind}")
    assert found["folder"].total() == 40 and found["folder"] == found["idx"] == found["tar"] == found["parquet"]


@pytest.mark.skipif(not (SHARED / "cifar10_10k").is_dir(), reason=f"{SHARED}/cifar10_10k is absent")
def test_real_photos_are_the_same_in_batches_and_folders(tmp_path):
    files = real_images("cifar10_10k", 30)
    names = sorted({file.parent.name for file in files})
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    labels = [names.index(file.parent.name) for file in files]
    write_files(
        tmp_path / "folder",
        {
            f"{'train' if n < 20 else 'test'}/{file.parent.name}/{file.name}": file.read_bytes()
            for n, file in enumerate(files)
        },
    )
    batches = cifar_files(pixels[:20], pixels[20:], labels) | {"batches.meta": pickle.dumps({"label_names": names}, 2)}
    write_tar(
        tmp_path / "cifar/cifar-10-python.tar.gz",
        {f"cifar-10-batches-py/{name}": data for name, data in batches.items()},
        "w:gz",
    )
    for kind in ("folder", "cifar"):
        made(tmp_path / f"out/{kind}", tmp_path / kind, image_size=32)
    assert samples(tmp_path / "out/folder") == samples(tmp_path / "out/cifar") and len(names) == 10
