"""Shards: readable by stock tools and by number; damage and trickery are refused by name."""

import gc
import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from genmodels.config import DatasetConfig
from genmodels.data import shard_writer
from genmodels.data.fields import DataSpec
from genmodels.data.loader import Loader
from genmodels.data.prepare import prepare
from genmodels.data.reader import ShardReader, verify
from genmodels.data.shards import DamagedData, ShardFile, data_digest, open_shards


def make(folder: Path, **values) -> Path:
    """A data set of 14 images in two classes, shards of 4."""
    for i in range(14):
        path = folder / "source" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    settings = {"image_size": 8, "shard_size": 4, "holdout": 0.2, **values}
    prepare("toy", DatasetConfig(source=str(folder / "source"), **settings), folder / "out", folder, 1)
    return folder / "out"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "out"))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("encoding", ["raw", "png", "webp", "jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_stock_webdataset_yields_the_same_pixels_and_labels(tmp_path, encoding, channels):
    folder = make(tmp_path, encoding=encoding, channels=channels)
    reader = ShardReader(folder, "train", 8)
    images = reader.read(np.arange(reader.num))
    shards = [str(folder / shard.name) for shard in open_shards(folder).shards if shard.name.startswith("train-8-")]
    decoder = ("rgb8" if channels == 3 else "l8",) if encoding != "raw" else ()
    samples = list(wds.WebDataset(shards, shardshuffle=False).decode(*decoder))
    gc.collect()  # webdataset leaves its files open
    suffix = "npy" if encoding == "raw" else encoding
    assert [sample["__key__"] for sample in samples] == reader.keys
    assert [sample["json"]["label"] for sample in samples] == reader.labels.tolist()
    theirs = np.stack([sample[suffix].reshape(8, 8, channels) for sample in samples])
    assert (theirs == images).all() and images.dtype == np.uint8


def test_raw_and_png_hold_the_originals_pixels(tmp_path):
    for encoding in ("raw", "png", "webp"):
        reader = ShardReader(make(tmp_path / encoding, encoding=encoding), "train", 8)
        for image, file in zip(reader.read(np.arange(reader.num)), reader.files, strict=True):
            assert (image == np.asarray(Image.open(tmp_path / encoding / "source" / file))).all()


def test_a_slice_of_the_tar_is_the_image(original):
    index = pq.read_table(original / "index-4.parquet").to_pylist()
    for split in ("train", "test"):
        reader = ShardReader(original, split, 4)
        rows = [row for row in index if row["split"] == split]
        for number, row in enumerate(rows):
            data = (original / f"{split}-4-{row['shard']:05d}.tar").read_bytes()
            pixels = data[row["offset"] : row["offset"] + row["length"]]
            assert pixels == reader.read(np.array([number])).tobytes() and row["key"] == reader.keys[number]


def test_tars_carry_no_time_owner_or_extension(original):
    for path in original.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert not tar.pax_headers
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.mode) == (
                    0,
                    0,
                    0,
                    0o644,
                ) and not member.pax_headers
        assert path.stat().st_size % tarfile.RECORDSIZE == 0


def test_reading_takes_any_order_and_repeats(original):
    reader = ShardReader(original, "train", 8)
    images = reader.read(np.arange(reader.num))
    ids = np.array([3, 0, 3, reader.num - 1])
    assert (reader.read(ids) == images[ids]).all()
    assert sum(reader.num_per_shard) == reader.num and max(reader.num_per_shard) <= 4
    for outside in (-1, reader.num):
        with pytest.raises(ValueError, match="is not in"):
            reader.read(np.array([outside]))


@pytest.mark.parametrize(
    ("split", "size", "domain", "message"),
    [
        ("val", 8, None, "split 'val'.*train, test"),
        ("train", 16, None, "image size 16.*choices: 4, 8"),
        ("train", 8, "A", "domain 'A'.*none"),
    ],
)
def test_what_is_not_there_is_named_with_the_choices(original, split, size, domain, message):
    with pytest.raises(ValueError, match=message):
        ShardReader(original, split, size, domain)


def test_a_folder_without_a_data_set_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no data set"):
        open_shards(tmp_path)


def test_undamaged_shards_pass(folder):
    assert verify(folder) == open_shards(folder) == verify(folder, full=False)


def test_a_shard_cut_at_any_block_is_refused_by_name(folder):
    path = folder / "train-8-00000.tar"
    whole = path.read_bytes()
    for length in range(0, len(whole), 512):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedData, match="train-8-00000.tar: .* bytes, should be"):
            ShardReader(folder, "train", 8)


@pytest.mark.parametrize("name", ["train-8-00000.tar", "test-4-00000.tar", "index-8.parquet", "manifest.parquet"])
def test_one_flipped_bit_is_refused_by_name(folder, name):
    path = folder / name
    data = bytearray(path.read_bytes())
    for position in np.random.default_rng(0).integers(0, len(data), 10):
        data[position] ^= 4
        path.write_bytes(data)
        with pytest.raises(DamagedData, match=f"{name}: sha256 differs"):
            verify(folder)
        data[position] ^= 4


@pytest.mark.parametrize("name", ["train-8-00001.tar", "index-8.parquet", "manifest.parquet"])
def test_one_flipped_bit_is_refused_by_name_before_it_is_read(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / name).write_bytes(data)
    message = rf"{name}: sha256 differs, the content was altered; remove \S+ and prepare"
    with pytest.raises(DamagedData, match=message), Loader(folder, ["image"], 8, 4, seed=0) as loader:
        for _ in range(4):
            next(loader)


def test_a_data_set_that_takes_the_place_of_the_one_being_read_is_refused(folder, tmp_path):
    reader, digest = ShardReader(folder, "train", 8), open_shards(folder).spec.digest
    images = reader.read(np.array([0]))
    prepared_anew = make(tmp_path / "new", resampling="area", background=(0, 0, 0), fit="pad", holdout=0.1)
    shutil.rmtree(folder)
    with pytest.raises(DamagedData, match="prepared anew while it was in use"):
        reader.read(np.array([reader.num - 1]))
    prepared_anew.rename(folder)
    assert (reader.read(np.array([0])) == images).all()  # held as it was
    with pytest.raises(DamagedData, match="prepared anew while it was in use"):
        reader.read(np.array([reader.num - 1]))
    with pytest.raises(DamagedData, match="prepared anew while it was in use"):
        Loader(folder, ["image"], 8, 4, seed=0, digest=digest)


def test_shards_that_are_read_are_not_kept_open(original):
    before = len(os.listdir("/proc/self/fd"))
    reader = ShardReader(original, "train", 8)
    reader.read(np.arange(reader.num))
    assert len(reader.shards) > 1 and len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["train-8-00000.tar", "index-4.parquet", "rejects.parquet"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DamagedData, match=f"{name}: missing"):
        open_shards(folder)


def forge(folder: Path, name: str, data: bytes) -> None:
    """Replaces a file and makes every hash in dataset.json agree, as an attacker would."""
    (folder / name).write_bytes(data)
    path = folder / "dataset.json"
    values = json.loads(path.read_text())
    for file in values["shards"] + values["tables"]:
        if file["name"] == name:
            file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(values))
    resign(folder, values)


def resign(folder: Path, values: dict) -> None:
    spec = DataSpec.from_json(values["spec"])
    values["spec"]["digest"] = data_digest(spec, values["encoding"], [ShardFile(**file) for file in values["shards"]])
    (folder / "dataset.json").write_text(json.dumps(values))


def rewritten(path: Path, change) -> bytes:
    """The tar with its first member changed by `change(member)`, which may return a second one to add."""
    stream = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as new:
        for number, member in enumerate(old.getmembers()):
            file = old.extractfile(member)
            assert file
            data = file.read()
            if number == 0:
                change(member)
            new.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return stream.getvalue()


def renamed(name):
    return lambda member: setattr(member, "name", name)


def linked(kind):
    def change(member):
        member.type, member.linkname, member.size = kind, "/etc/passwd", 0

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("../../x.npy"), "not allowed"),
        (renamed("/abs/x.npy"), "not allowed"),
        (renamed("a/../x.npy"), "not allowed"),
        (renamed("a/x.pyd"), "not allowed"),
        (renamed("a/x.pkl"), "not allowed"),
        (linked(tarfile.SYMTYPE), "no regular file"),
        (linked(tarfile.LNKTYPE), "no regular file"),
        (linked(tarfile.CHRTYPE), "no regular file"),
    ],
)
def test_hostile_members_are_refused_even_with_the_right_hash(folder, change, message):
    name = "train-8-00000.tar"
    forge(folder, name, rewritten(folder / name, change))
    with pytest.raises(DamagedData, match=f"{name}: member .* {message}"):
        verify(folder)


def test_a_key_that_comes_twice_is_refused(folder):
    name = "train-8-00000.tar"
    with tarfile.open(folder / name) as tar:
        last = tar.getmembers()[-2].name
    forge(folder, name, rewritten(folder / name, renamed(last)))
    with pytest.raises(DamagedData, match="comes twice"):
        verify(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["shards"][0].update(name="../../train-8-00000.tar"),
        lambda values: values["shards"][0].update(name="pipe:id"),
        lambda values: values["tables"].pop(),
        lambda values: values.update(format=99),
        lambda values: values.update(encoding="pickle"),
        lambda values: values.pop("shards"),
        lambda values: values["spec"].update(surprise=1),
    ],
)
def test_a_dataset_json_that_prepare_did_not_write_is_refused(folder, change):
    values = json.loads((folder / "dataset.json").read_text())
    change(values)
    (folder / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(DamagedData, match="dataset.json: not as prepare wrote it"):
        open_shards(folder)


def test_a_dataset_json_of_other_content_is_refused(folder):
    values = json.loads((folder / "dataset.json").read_text())
    values["spec"]["classes"] = ["b", "a"]
    (folder / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(DamagedData, match="digest"):
        open_shards(folder)
    (folder / "dataset.json").write_bytes(b"\xff{")
    with pytest.raises(DamagedData, match="not as prepare wrote it"):
        open_shards(folder)


@pytest.mark.parametrize("column", ["offset", "length", "row", "shard"])
def test_an_index_that_points_elsewhere_is_refused(folder, column):
    table = pq.read_table(folder / "index-8.parquet")
    values = table[column].to_numpy().copy()
    values[0] = 10**8
    position = table.column_names.index(column)
    stream = io.BytesIO()
    pq.write_table(table.set_column(position, table.field(column), [values]), stream)
    forge(folder, "index-8.parquet", stream.getvalue())
    with pytest.raises(DamagedData, match="index-8.parquet: (points outside|images are not|disagrees)"):
        ShardReader(folder, "train", 8)


def test_an_encoded_image_that_does_not_decode_is_named(tmp_path):
    folder = make(tmp_path, encoding="png")
    reader = ShardReader(folder, "train", 8)
    row = pq.read_table(folder / "index-8.parquet").to_pylist()[reader.num]  # first of the test split
    path = folder / f"test-8-{row['shard']:05d}.tar"
    data = bytearray(path.read_bytes())
    data[row["offset"] : row["offset"] + 8] = b"\x80\x04pickle"
    forge(folder, path.name, bytes(data))
    with pytest.raises(DamagedData, match=f"{path.name}: image {row['key']!r}"):
        ShardReader(folder, "test", 8).read(np.array([0]))


@pytest.mark.parametrize("name", ["a.npy", "deep/er/" + "k" * 80 + ".json", "-_/0.webp"])
@pytest.mark.parametrize("length", [0, 1, 512, 70_000])
def test_a_member_is_what_tarfile_writes(name, length):
    info = tarfile.TarInfo(name)
    info.size = length
    data = bytes(range(256)) * (length // 256) + bytes(length % 256)
    assert shard_writer._member(name, data)[:512] == info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    assert len(shard_writer._member(name, data)) % 512 == 0
