"""What every archive has in common: found by name, here and behind a URL, by one process and several."""

import os
import pickle
import re
from pathlib import Path

import fsspec
import numpy as np
import pytest
from archives import (
    SHARED,
    cifar_files,
    made,
    noise,
    one_line,
    opened,
    pair,
    refused,
    samples,
    write_files,
    write_mnist,
    write_parquet,
    write_tar,
)
from PIL import Image

from genmodels.config import DatasetConfig
from genmodels.data.decode import Decoder, Sample
from genmodels.data.reader import ShardReader
from genmodels.data.sources.names import LAYOUTS
from genmodels.data.sources.tree import LocalTree, open_file, open_tree


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
