"""Folders become records: layouts, order, keys, and what is refused by name."""

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from genmodels.config import DatasetConfig
from genmodels.data.sources import LAYOUTS, NOT_AN_IMAGE_FILE, FolderSource, open_source


def fill(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")
    return folder


def by_file(folder: Path) -> dict:
    return {record.file: record for record in FolderSource(folder).records()}


def test_a_flat_folder_has_no_classes(tmp_path):
    source = FolderSource(fill(tmp_path, "b.png", "a.JPG", "c.Tiff"))
    assert [record.file for record in source.records()] == ["a.JPG", "b.png", "c.Tiff"]
    assert source.classes == source.domains == ()
    assert source.describe() == "flat folder: 3 images"


def test_one_sub_folder_alone_is_flat(tmp_path):
    source = FolderSource(fill(tmp_path, "images/a.png", "images/b.png", "notes.txt", "docs/readme.md"))
    assert source.classes == ()
    assert {reject.reason for reject in source.rejects} == {NOT_AN_IMAGE_FILE}


def test_sub_folders_are_classes_and_loose_images_are_refused(tmp_path):
    source = FolderSource(fill(tmp_path, "dog/1.png", "cat/1.png", "cat/deep/2.png", "preview.png"))
    labels = {record.file: record.label for record in source.records()}
    assert source.classes == ("cat", "dog")
    assert labels == {"cat/1.png": "cat", "cat/deep/2.png": "cat", "dog/1.png": "dog"}
    assert source.rejects == (("preview.png", "image beside the class folders"),)


def test_domain_folders_give_domain_and_split(tmp_path):
    files = ("trainA/1.png", "trainB/2.png", "testA/3.png", "testB/3.png", "valA/4.png", "other/5.png")
    source = FolderSource(fill(tmp_path, *files))
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


@pytest.mark.parametrize("files", [("trainA/1.png",), ("train/c/1.png", "test/c/2.png"), ("notes.txt",), ()])
def test_what_is_no_layout_is_named_with_the_layouts(tmp_path, files):
    with pytest.raises(ValueError, match=re.escape(LAYOUTS)) as error:
        FolderSource(fill(tmp_path, *files))
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.*trainA"):
        open_source(DatasetConfig(source="nowhere"), tmp_path)


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
    source = FolderSource(fill(tmp_path, name))
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
    source = FolderSource(folder)
    assert [record.file for record in source.records()] == ["a.png", "inside.png", "sub/c.png"]
    assert dict(source.rejects) == {
        "out.png": "link out of the folder",
        "outfolder": "link out of the folder",
        "again": "link to a folder",
        "broken.png": "not a regular file",
        "pipe.png": "not a regular file",
    }
    assert source.fingerprint() == FolderSource(folder).fingerprint()


def test_the_fingerprint_changes_with_name_size_and_time(tmp_path):
    folder = fill(tmp_path, "a.png", "b.txt")
    seen = {FolderSource(folder).fingerprint()}
    os.utime(folder / "a.png", ns=(0, 0))
    seen.add(FolderSource(folder).fingerprint())
    (folder / "b.txt").write_bytes(b"longer")
    seen.add(FolderSource(folder).fingerprint())
    (folder / "a.png").rename(folder / "c.png")
    seen.add(FolderSource(folder).fingerprint())
    assert len(seen) == 4


def test_the_embedded_sprites_need_no_files(tmp_path):
    source = open_source(DatasetConfig(source="sprites", num_images=20, image_size=16), tmp_path)
    records = list(source.records())
    image = source.read(records[0])
    assert len(records) == 20 and isinstance(image, Image.Image) and image.size == (16, 16)
    assert len(source.fingerprint()) == 64 and source.describe().startswith("sprites")
