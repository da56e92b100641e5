"""MNIST's files: read exactly, or refused in one line."""

import gzip

import numpy as np
import pytest
from archives import expected, idx, made, noise, one_line, opened, refused, samples, write_files, write_mnist

from genmodels.data.shards import open_shards


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
