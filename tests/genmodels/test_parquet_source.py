"""Parquet files: rows as images, columns in the roles of tables."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import CLASSES, contents, expected, made, noise, one_line, opened, png, refused, samples, write_parquet

from genmodels.data.shards import open_shards


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
