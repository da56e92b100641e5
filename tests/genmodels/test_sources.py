"""Folders become records: layouts, order, keys, and what is refused by name."""

import os
import re
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from genmodels.config import DatasetConfig
from genmodels.data import remote
from genmodels.data.sources import open_source
from genmodels.data.sources.columns import Named
from genmodels.data.sources.folder import FolderSource
from genmodels.data.sources.names import LAYOUTS, NOT_AN_IMAGE_FILE
from genmodels.data.sources.tree import LocalTree


def folder_source(folder: Path, **named: object) -> FolderSource:
    return FolderSource(LocalTree(folder), Named(**named))


def fill(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")
    return folder


def by_file(folder: Path) -> dict:
    return {record.file: record for record in folder_source(folder).records()}


def test_a_flat_folder_has_no_classes(tmp_path):
    source = folder_source(fill(tmp_path, "b.png", "a.JPG", "c.Tiff"))
    assert [record.file for record in source.records()] == ["a.JPG", "b.png", "c.Tiff"]
    assert source.classes == source.domains == ()
    assert source.describe() == "flat folder: 3 images"


def test_one_sub_folder_alone_is_flat(tmp_path):
    source = folder_source(fill(tmp_path, "images/a.png", "images/b.png", "notes.txt", "docs/readme.md"))
    assert source.classes == ()
    assert {reject.reason for reject in source.rejects} == {NOT_AN_IMAGE_FILE}


def test_sub_folders_are_classes_and_loose_images_are_refused(tmp_path):
    source = folder_source(fill(tmp_path, "dog/1.png", "cat/1.png", "cat/deep/2.png", "preview.png"))
    labels = {record.file: record.label for record in source.records()}
    assert source.classes == ("cat", "dog")
    assert labels == {"cat/1.png": "cat", "cat/deep/2.png": "cat", "dog/1.png": "dog"}
    assert source.rejects == (("preview.png", "image beside the class folders"),)


def test_domain_folders_give_domain_and_split(tmp_path):
    files = ("trainA/1.png", "trainB/2.png", "testA/3.png", "testB/3.png", "valA/4.png", "other/5.png")
    source = folder_source(fill(tmp_path, *files))
    found = {record.file: (record.domain, record.split) for record in source.records()}
    assert found == {
        "trainA/1.png": ("A", "train"),
        "trainB/2.png": ("B", "train"),
        "testA/3.png": ("A", "test"),
        "testB/3.png": ("B", "test"),
    }
    assert source.rejects == (("other/5.png", "outside trainA, trainB, testA, testB"),)
    assert "ignored: valA" in source.describe()


def test_domains_without_test_folders_leave_the_split_to_the_holdout(tmp_path):
    records = by_file(fill(tmp_path, "trainA/1.png", "trainB/2.png"))
    assert {record.split for record in records.values()} == {None}


@pytest.mark.parametrize("files", [("trainA/1.png",), ("notes.txt",), ()])
def test_what_is_no_layout_is_named_with_the_layouts(tmp_path, files):
    with pytest.raises(ValueError, match=re.escape(LAYOUTS)) as error:
        folder_source(fill(tmp_path, *files))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["nowhere", "~nobody-of-this-name/pictures"])
def test_a_missing_folder_is_named(tmp_path, source):
    with pytest.raises(ValueError, match=f"{source}.*trainA"):
        open_source(DatasetConfig(source=source), tmp_path)


def test_a_source_is_relative_to_the_root_or_absolute_or_at_home(tmp_path, monkeypatch):
    fill(tmp_path / "pictures", "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    for source, root in (("pictures", tmp_path), (str(tmp_path / "pictures"), Path("/")), ("~/pictures", Path("/"))):
        assert len(list(open_source(DatasetConfig(source=source), root).records())) == 1


def test_odd_names_get_safe_unique_keys(tmp_path):
    odd = [
        "a b.png",
        "a_b.png",
        "a.b.png",
        "ü.png",
        "ö.png",
        "new\nline.png",
        "x" * 200 + ".png",
        "same.jpg",
        "same.png",
    ]
    records = by_file(fill(tmp_path, *odd))
    keys = [record.key for record in records.values()]
    assert set(records) == set(odd) and len(set(keys)) == len(odd)
    assert all(re.fullmatch(r"[A-Za-z0-9_/-]{1,95}", key) for key in keys)


def test_a_plain_name_is_its_own_key(tmp_path):
    assert by_file(fill(tmp_path, "sub/Cat_01-a.png"))["sub/Cat_01-a.png"].key == "sub/Cat_01-a"


def test_no_file_takes_the_key_that_another_was_given(tmp_path):
    taken = by_file(fill(tmp_path / "one", "a b.png"))["a b.png"].key
    keys = [record.key for record in by_file(fill(tmp_path / "two", "a b.png", f"{taken}.png")).values()]
    assert len(set(keys)) == 2


def test_a_name_that_is_no_unicode_is_read(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    source = folder_source(fill(tmp_path, name))
    (record,) = source.records()
    assert source.read(record) == b"x" and record.key.startswith("caf_")


def test_links_out_fifos_and_linked_folders_are_refused_and_hidden_files_skipped(tmp_path):
    outside = fill(tmp_path / "outside", "secret.png")
    folder = fill(tmp_path / "in", "a.png", ".hidden.png", ".git/b.png", "sub/c.png")
    (folder / "out.png").symlink_to(outside / "secret.png")
    (folder / "outfolder").symlink_to(outside)
    (folder / "again").symlink_to(folder / "sub")
    (folder / "broken.png").symlink_to(folder / "none.png")
    (folder / "inside.png").symlink_to(folder / "a.png")
    os.mkfifo(folder / "pipe.png")
    source = folder_source(folder)
    assert [record.file for record in source.records()] == ["a.png", "inside.png", "sub/c.png"]
    assert dict(source.rejects) == {
        "out.png": "link out of the folder",
        "outfolder": "link out of the folder",
        "again": "link to a folder",
        "broken.png": "not a regular file",
        "pipe.png": "not a regular file",
    }
    assert source.fingerprint() == folder_source(folder).fingerprint()


def test_the_fingerprint_changes_with_name_size_and_time(tmp_path):
    folder = fill(tmp_path, "a.png", "b.txt")
    seen = {folder_source(folder).fingerprint()}
    os.utime(folder / "a.png", ns=(0, 0))
    seen.add(folder_source(folder).fingerprint())
    (folder / "b.txt").write_bytes(b"longer")
    seen.add(folder_source(folder).fingerprint())
    (folder / "a.png").rename(folder / "c.png")
    seen.add(folder_source(folder).fingerprint())
    assert len(seen) == 4


def test_the_embedded_sprites_need_no_files(tmp_path):
    source = open_source(DatasetConfig(source="sprites", num_images=20, image_size=16), tmp_path)
    records = list(source.records())
    image = source.read(records[0])
    assert len(records) == 20 and isinstance(image, Image.Image) and image.size == (16, 16)
    assert len(source.fingerprint()) == 64 and source.describe().startswith("sprites")


@pytest.mark.parametrize("held_out", ["test", "val", "valid"])
def test_train_and_test_folders_are_the_split(tmp_path, held_out):
    files = ("train/cat/1.png", "train/dog/1.png", f"{held_out}/cat/2.png", "other/3.png", "train/4.png")
    source = folder_source(fill(tmp_path, *files))
    found = {(record.file, record.split, record.label) for record in source.records()}
    assert found == {
        ("train/cat/1.png", "train", "cat"),
        ("train/dog/1.png", "train", "dog"),
        (f"{held_out}/cat/2.png", "test", "cat"),
    }
    assert {reject.file for reject in source.rejects} == {"other/3.png", "train/4.png"}
    assert f"train/ and {held_out}/, one folder a class, 2 classes" in source.describe()


def test_train_and_test_folders_may_be_flat_and_val_is_left_out_beside_test(tmp_path):
    source = folder_source(fill(tmp_path, "train/1.png", "test/2.png", "val/3.png"))
    assert [(record.file, record.split, record.label) for record in source.records()] == [
        ("train/1.png", "train", None),
        ("test/2.png", "test", None),
    ]
    assert "ignored: val" in source.describe()


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("training", "testing"),
        ("train2017", "val2017"),
        ("pets/train", "pets/test"),
        ("a/b/TRAIN", "a/b/Valid"),
    ],
)
def test_a_split_is_found_by_its_usual_names_below_a_folder_too(tmp_path, train, test):
    source = folder_source(fill(tmp_path, *(f"{top}/{name}/1.png" for top in (train, test) for name in ("cat", "dog"))))
    assert {(record.file, record.split, record.label) for record in source.records()} == {
        (f"{top}/{name}/1.png", split, name)
        for top, split in ((train, "train"), (test, "test"))
        for name in ("cat", "dog")
    }
    assert f"{train.split('/')[-1]}/ and {test.split('/')[-1]}/" in source.describe()
    assert ("in pets/" in source.describe()) == train.startswith("pets")


def test_a_training_set_alone_or_a_folder_around_all_keeps_its_classes(tmp_path):
    for top in ("train", "pets", "pets/Train"):
        records = by_file(fill(tmp_path / top, f"{top}/cat/1.png", f"{top}/dog/1.png"))
        assert [(record.label, record.split) for record in records.values()] == [("cat", None), ("dog", None)]


def test_domains_are_found_below_a_folder_and_val_is_held_out_without_test(tmp_path):
    source = folder_source(fill(tmp_path, *(f"x/{top}/1.png" for top in ("trainA", "trainB", "ValA", "valB"))))
    found = sorted((record.domain, record.split, record.file.split("/")[1]) for record in source.records())
    assert found == [("A", "test", "ValA"), ("A", "train", "trainA"), ("B", "test", "valB"), ("B", "train", "trainB")]
    with pytest.raises(ValueError, match="trainB/ alone"):
        folder_source(fill(tmp_path / "one", "x/trainB/1.png"))


def test_a_url_is_read_like_a_folder(tmp_path):
    files = fill(tmp_path, "cat/1.png", "dog/1.png", "dog/.hidden.png", "notes.txt")
    store = fsspec.filesystem("memory")
    store.put(str(files), "/photos", recursive=True)
    far, near = (open_source(DatasetConfig(source=where), tmp_path) for where in ("memory://photos", str(files)))
    assert list(far.records()) == list(near.records()) and far.rejects == near.rejects
    assert [far.read(each) for each in far.records()] == [near.read(each) for each in near.records()]
    before = far.fingerprint()
    store.pipe_file("/photos/cat/1.png", b"other")
    assert open_source(DatasetConfig(source="memory://photos"), tmp_path).fingerprint() != before


@pytest.mark.parametrize(
    ("url", "message"),
    [("s3://user:word@bucket/x", "credentials belong into the environment"), ("nosuch://x", "nosuch")],
)
def test_a_url_that_cannot_be_read_is_one_line(tmp_path, url, message):
    with pytest.raises(ValueError, match=message) as error:
        open_source(DatasetConfig(source=url), tmp_path)
    assert "\n" not in str(error.value) and "word" not in str(error.value)


def test_an_outage_is_waited_for_and_an_answer_is_not(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    failures = iter([ConnectionError("away")] * 3)

    def flaky() -> str:
        if error := next(failures, None):
            raise error
        return "here"

    assert remote.retried(flaky, "s3://x") == "here"

    def missing() -> None:
        raise FileNotFoundError("no such object")

    with pytest.raises(FileNotFoundError):
        remote.retried(missing, "s3://x")
    monkeypatch.setattr(remote, "PATIENCE", 0.01)
    with pytest.raises(remote.Outage, match="s3://x: out of reach"):
        remote.retried(lambda: 1 / 0, "s3://x")
