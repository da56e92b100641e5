"""CIFAR's batches: read exactly; a hostile pickle runs nothing."""

import gzip
import os
import pickle
import re
import tarfile
from collections import Counter

import numpy as np
import pytest
from archives import (
    CLASSES,
    Evil,
    cifar_batch,
    cifar_files,
    expected,
    made,
    noise,
    opened,
    refused,
    samples,
    write_files,
    write_tar,
)
from PIL import Image

from genmodels.data.shards import open_shards


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
