"""WebDataset tars: samples of members; hostile members are rejects."""

import json
import os
import pickle
import re
import tarfile
from collections import Counter

import pytest
from archives import CLASSES, Evil, expected, made, noise, opened, pair, png, refused, samples, write_tar

from genmodels.data.shards import open_shards


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


@pytest.mark.parametrize(
    "names", [("Train-0", "Test-0"), ("train0", "test0"), ("training-0", "testing-0"), ("train_00", "Validation_00")]
)
def test_tars_are_split_by_the_usual_names(tmp_path, tar_images, names):
    for name, image in zip(names, tar_images, strict=False):
        write_tar(tmp_path / f"{name}.tar", pair("1", image))
    assert [record.split for record in opened(tmp_path).records()] == ["train", "test"]


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


def test_null_says_nothing(tmp_path, tar_images):
    null = b'{"caption": null, "text": "two", "label": null, "class": "k", "attributes": null}'
    members = [*pair("1", tar_images[0], txt=b"one", json=null), *pair("2", tar_images[1], json=null)]
    source = opened(write_tar(tmp_path / "a.tar", members))
    assert [(record.captions, record.label) for record in source.records()] == [(("one",), "k"), (("two",), "k")]
    assert source.rejects == ()


def test_equal_paths_of_different_tars_get_keys_of_their_own(tmp_path, tar_images):
    write_tar(tmp_path / "a.tar", [*pair("b/0", tar_images[0]), *pair("c", tar_images[1])])
    write_tar(tmp_path / "a/b.tar", pair("0", tar_images[2]))
    keys = {record.file: record.key for record in opened(tmp_path).records()}
    assert len(set(keys.values())) == 3 and keys["a.tar/c.png"] == "a/c"
    assert made(tmp_path / "out", tmp_path, holdout=0).num_train == 3


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
