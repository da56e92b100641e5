"""Captions, attributes, classes and groups from tables beside the images; what is wrong is named to the cell."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from genmodels.config import DatasetConfig
from genmodels.data.loader import Loader, read_split
from genmodels.data.prepare import prepare
from genmodels.data.shards import open_shards
from genmodels.data.sources import open_source
from genmodels.data.sources.columns import Named
from genmodels.data.sources.folder import FolderSource
from genmodels.data.sources.tree import LocalTree

SHARED = Path(__file__).parents[3] / "shared/data"


def folder_source(folder: Path, **named: object) -> FolderSource:
    return FolderSource(LocalTree(folder), Named(**named))


def fill(folder: Path, images: list[str], **texts: str | bytes) -> Path:
    """Different images, and files whose names hold `__` for a dot."""
    for number, name in enumerate(images):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(folder / name)
    for name, text in texts.items():
        data = text.encode() if isinstance(text, str) else text
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def captions(source: FolderSource) -> dict[str, tuple[str, ...]]:
    return {record.file: record.captions for record in source.records()}


def test_rows_of_one_image_are_its_captions_in_every_layout(tmp_path):
    images, expected = ["images/a.png", "images/b.png"], {"images/a.png": ("a cat", "cat, red"), "images/b.png": ("é",)}
    csv = 'file,caption\nimages/a.png,a cat\na.png,"cat, red"\n\n./images/b.png,é\n'
    jsonl = '{"file_name": "a.png", "text": ["a cat", "cat, red"]}\n{"file_name": "b.png", "text": "é"}\n'
    sources = [
        folder_source(fill(tmp_path / "csv", images, captions__csv=b"\xef\xbb\xbf" + csv.encode())),
        folder_source(fill(tmp_path / "jsonl", images, captions__jsonl=jsonl)),
    ]
    fill(tmp_path / "txt", images)
    (tmp_path / "txt/images/a.txt").write_text("a cat\r\n\n  cat, red\n")
    (tmp_path / "txt/images/b.txt").write_text("é")
    sources.append(folder_source(tmp_path / "txt"))
    for source in sources:
        assert captions(source) == expected and source.rejects == () and "with 3 captions" in source.describe()


def test_an_image_without_a_caption_is_a_reject_and_counts_add_up(tmp_path):
    images = [f"{i}.png" for i in range(10)]
    rows = "".join(f"{name},word{i}\n" for i, name in enumerate(images[:8])) + "8.png, ..\n"
    folder = fill(tmp_path / "s", images, captions__csv="image,text\n" + rows, notes__md="")
    config = DatasetConfig(source=str(folder), image_size=4, max_reject_fraction=0.2)
    spec = prepare("toy", config, tmp_path / "out", tmp_path, 1)
    counts = open_shards(tmp_path / "out").counts
    assert counts["rejects"] == {"no caption": 2, "not an image file": 1}
    assert counts["found"] == 11 == counts["accepted"] + counts["rejected"] and "caption" in spec.keys


@pytest.mark.parametrize(
    "table,parts",
    [
        (b"file,caption\na.png,x\nc.png,y\n", ["row 3", "column file", "'c.png'"]),
        (b"file,caption\nb.pgn,x\n", ["row 2", "column file", "did you mean 'b.png'"]),
        (b"file,caption\na.png,x\nb.png,y\na.png,x\n", ["row 4", "repeats row 2"]),
        (b"file,caption\n../x.png,x\n", ["row 2", "column file", "'../x.png' is no path inside"]),
        (b"file,caption\n/etc/passwd,x\n", ["row 2", "column file", "'/etc/passwd'"]),
        (b"file,caption\na.png,caf\xe9\n", ["row 2", "column caption", "not UTF-8"]),
        ("file,caption\na.png,x\n".encode("utf-16"), ["row 1", "not UTF-8"]),
        (b"caption,thing\nx,a.png\n", ["row 1", "'image'", "file, image, filename", "found: caption, thing"]),
        (b"file,words\na.png,x\n", ["row 1", "'caption'", "caption, text, description", "found: file, words"]),
        (b"file,caption\na.png,red, large\n", ["row 2", "3 values for 2 columns", "quote"]),
        (b'file,caption\na.png,"x\n', ["row 2", "unexpected end of data"]),
        (b"file,file\n", ["row 1", "one name"]),
        (b"", ["row 1", "'image'", "found: none"]),
        (b"file,caption\ntwin.png,x\n", ["row 2", "several images: p/twin.png, q/twin.png"]),
    ],
)
def test_a_wrong_table_is_one_line_with_file_row_and_column(tmp_path, table, parts):
    folder = fill(tmp_path, ["a.png", "b.png", "p/twin.png", "q/twin.png"], captions__csv=table)
    with pytest.raises(ValueError) as error:
        folder_source(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / 'captions.csv'} row ") and "\n" not in message and message.isprintable()
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"file": "a.png"}', "[" * 100_000, '{"file": "a.png", "text": "\\ud800"}']
)
def test_a_wrong_json_line_is_named(tmp_path, line):
    folder = fill(tmp_path, ["a.png"], captions__jsonl='{"file": "a.png", "text": "x"}\n' + line)
    with pytest.raises(ValueError, match=r"captions\.jsonl row 2"):
        folder_source(folder)


def test_a_table_that_is_a_link_out_of_the_folder_is_not_read(tmp_path):
    folder = fill(tmp_path / "in", ["a.png"])
    (folder / "captions.csv").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"captions\.csv: link out of the folder"):
        folder_source(folder)


def test_columns_of_two_values_are_attributes_and_missing_cells_rejects(tmp_path):
    csv = "image,age,Male,Young\na.png,20,1,1\nb.png,70,0,-1\nc.png,30,,1\n"
    source = folder_source(fill(tmp_path, ["a.png", "b.png", "c.png", "d.png"], attributes__csv=csv))
    assert source.attributes == ("Male", "Young")
    assert {record.file: record.attributes for record in source.records()} == {
        "a.png": {"Male": 1, "Young": 1},
        "b.png": {"Male": 0, "Young": 0},
    }
    assert source.rejects == (("c.png", "no attributes"), ("d.png", "no attributes"))


def test_celebas_layout_says_the_same(tmp_path):
    text = "2\nMale Young\nmy face.png -1  1\nb.png  1 -1\n"
    source = folder_source(fill(tmp_path, ["images/my face.png", "images/b.png"], list_attr__txt=text))
    assert [record.attributes for record in source.records()] == [{"Male": 1, "Young": 0}, {"Male": 0, "Young": 1}]
    (tmp_path / "list_attr.txt").write_text(text.replace("2", "3"))
    with pytest.raises(ValueError, match=r"list_attr\.txt row 1: says 3 images, 2 follow"):
        folder_source(tmp_path)


@pytest.mark.parametrize("cell", ["0", "x"])
def test_a_cell_of_celebas_layout_that_says_neither_is_named(tmp_path, cell):
    rows = "".join(f"{i}.png {cell if i == 7 else 1 - 2 * (i % 2)} 1\n" for i in range(30))
    folder = fill(tmp_path, [f"{i}.png" for i in range(30)], list_attr__txt="30\nMale Young\n" + rows)
    for chosen in (None, ["Male"]):
        with pytest.raises(ValueError, match=rf"list_attr\.txt row 10, column Male: '{cell}' is neither -1 nor 1"):
            folder_source(folder, attributes=chosen)


def test_a_slip_among_zeros_and_ones_is_named_and_a_column_of_more_values_is_none(tmp_path):
    rows = "".join(f"{i}.png,{'1x' if i == 7 else i % 2},{i % 3},{i % 2}\n" for i in range(30))
    folder = fill(tmp_path, [f"{i}.png" for i in range(30)], attributes__csv="file,Male,tone,Young\n" + rows)
    for chosen in (None, ["Male"]):
        with pytest.raises(ValueError, match=r"attributes\.csv row 9, column Male: '1x' is neither 0 nor 1"):
            folder_source(folder, attributes=chosen)
    assert folder_source(folder, attributes=["Young"]).attributes == ("Young",)
    assert folder_source(folder, attributes=["Male=1x"]).attributes == ("Male_1x",)


def test_what_pandas_writes_for_zero_and_one_is_read(tmp_path):
    rows = "".join(f"{i}.png,{bool(i % 2)},{float(i % 2)},{i % 2}\n" for i in range(4))
    source = folder_source(fill(tmp_path, [f"{i}.png" for i in range(4)], attributes__csv="file,a,b,c\n" + rows))
    assert source.attributes == ("a", "b", "c")
    assert [record.attributes for record in source.records()] == [dict.fromkeys("abc", i % 2) for i in range(4)]


def test_an_empty_column_is_no_attribute(tmp_path):
    folder = fill(tmp_path, ["a.png", "b.png"], attributes__csv="file,Male,Old\na.png,,1\nb.png,,0\n")
    assert folder_source(folder).attributes == ("Old",)
    with pytest.raises(ValueError, match="attributes: column 'Male' is empty"):
        folder_source(folder, attributes=["Male"])


TONES = "file,base,tone,dark\n" + "".join(f"{b}{t}.png,{b},{t},{int(t > 1)}\n" for b in range(12) for t in range(3))


def tones(folder: Path) -> Path:
    return fill(folder, [f"{base}{tone}.png" for base in range(12) for tone in range(3)], attributes__csv=TONES)


@pytest.mark.parametrize(
    "chosen,names",
    [
        (None, ("dark",)),
        ((), ()),
        (("tone",), ("tone_0", "tone_1", "tone_2")),
        (("tone=2", "dark"), ("tone_2", "dark")),
    ],
)
def test_attributes_are_chosen_by_column_and_by_value(tmp_path, chosen, names):
    source = folder_source(tones(tmp_path), attributes=chosen)
    assert source.attributes == names
    for record in source.records():
        tone = int(record.file[-5])
        expected = {"dark": tone > 1, **{f"tone_{value}": tone == value for value in range(3)}}
        assert (record.attributes or {}) == {name: expected[name] for name in names}


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"attributes": ("tome",)}, "no column 'tome' (did you mean 'tone'?)"),
        ({"attributes": ("tone=7",)}, "no '7' in column 'tone'; choices: 0, 1, 2"),
        ({"attributes": ("dark", "dark")}, "'dark' comes twice"),
        ({"label": "x"}, "label: no column 'x' in attributes.csv; choices: base, tone, dark"),
        ({"split_by": "x"}, "split_by: no column 'x'"),
    ],
)
def test_a_wrong_choice_of_columns_is_named_with_the_choices(tmp_path, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        folder_source(tones(tmp_path), **settings)


def test_columns_without_a_table_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no column 'x' in .*, which has no table \(attributes\.csv"):
        folder_source(fill(tmp_path, ["a.png"]), label="x")
    with pytest.raises(ValueError, match="label names columns"):
        open_source(DatasetConfig(source="sprites", label="x"), tmp_path)


def test_a_column_names_the_classes_instead_of_the_folders(tmp_path):
    source = folder_source(
        fill(tmp_path, ["p/a.png", "q/b.png", "c.png"], attributes__csv="file,k\na.png,x\nb.png,y\n"), label="k"
    )
    assert source.classes == ("x", "y") and source.rejects == (("c.png", "no label"),)


def test_a_drawing_and_its_copies_stay_in_one_split_and_groups_count_through(tmp_path):
    folder = tones(tmp_path / "s")
    for copy in range(5):  # drawings that share a picture
        (folder / f"{copy + 1}0.png").write_bytes((folder / f"{copy}0.png").read_bytes())
    config = DatasetConfig(source=str(folder), image_size=4, attributes=("tone",), split_by="base", holdout=0.3)
    spec = prepare("toy", config, tmp_path / "out", tmp_path, 1)
    assert spec.group == "base" and "group" in spec.keys and spec.num_test % 3 == 0 and spec.num_test > 0
    train, test = (read_split(tmp_path / "out", split, 4, 100)[0] for split in ("train", "test"))
    assert not set(train["group"].tolist()) & set(test["group"].tolist())
    assert (test["group"].bincount(minlength=12) % 3 == 0).all() and (test["attributes"].sum(1) == 1).all()
    rows = pq.read_table(tmp_path / "out/manifest.parquet").to_pylist()
    splits = {sha: {row["split"] for row in rows if row["sha256"] == sha} for sha in {row["sha256"] for row in rows}}
    assert all(len(each) == 1 for each in splits.values())
    for row in rows:
        assert sorted(str(base) for base in range(12))[row["group"]] == row["file"][:-5]
    with Loader(tmp_path / "out", ("image", "group"), 4, 4, seed=0) as loader:
        assert next(loader)["group"].dtype == train["group"].dtype


def test_a_single_group_cannot_be_held_out(tmp_path):
    csv = "file,one,joined\n" + "".join(f"{i}.png,x,{i % 3}\n" for i in range(6))
    folder = fill(tmp_path / "s", [f"{i}.png" for i in range(6)], attributes__csv=csv)
    for i in (1, 2):
        (folder / f"{i}.png").write_bytes((folder / "0.png").read_bytes())
    for column, message in (("one", "a single group"), ("joined", "3 groups, joined to one by pictures they share")):
        config = DatasetConfig(source=str(folder), image_size=4, split_by=column)
        with pytest.raises(ValueError, match=f"split_by gives {message}: nothing can be held out"):
            prepare("toy", config, tmp_path / "out", tmp_path, 1)
        config = DatasetConfig(source=str(folder), image_size=4, split_by=column, holdout=0)
        assert prepare("toy", config, tmp_path / column, tmp_path, 1).num_test == 0


def test_num_images_keeps_groups_whole(tmp_path):
    config = DatasetConfig(source=str(tones(tmp_path / "s")), image_size=4, split_by="base", num_images=9)
    prepare("toy", config, tmp_path / "out", tmp_path, 1)
    rows = pq.read_table(tmp_path / "out/manifest.parquet").to_pylist()
    assert np.unique([row["group"] for row in rows], return_counts=True)[1].tolist() == [3, 3, 3]


@pytest.mark.parametrize("file", ["captions.csv", "attributes.csv"])
def test_the_fingerprint_changes_with_a_table(tmp_path, file):
    folder = fill(tmp_path, ["a.png"])
    (folder / file).write_text("file,caption\na.png,1\n")
    before = folder_source(folder).fingerprint()
    (folder / file).write_text("file,caption\na.png,0 \n")
    assert folder_source(folder).fingerprint() != before


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent")
@pytest.mark.parametrize(
    "name,settings,keys",
    [
        ("openmoji_captions", {"label": "group"}, {"label", "caption"}),
        ("flickr8k_captions", {}, {"caption"}),
        ("utkface_attr", {}, {"attributes"}),
        ("openmoji_skintones", {"attributes": ("skintone",), "split_by": "base"}, {"attributes", "group"}),
    ],
)
def test_real_folders_bring_what_their_tables_say(tmp_path, name, settings, keys):
    config = DatasetConfig(source=str(SHARED / name), image_size=8, num_images=60, **settings)
    spec = prepare(name, config, tmp_path / "out", tmp_path, 1)
    assert set(spec.keys) == {"image"} | keys and spec.num_train + spec.num_test == 60


def test_two_rows_of_one_image_must_agree(tmp_path):
    folder = fill(tmp_path, ["a.png"], attributes__csv="file,k\na.png,1\na.png,1\n")
    with pytest.raises(ValueError, match=r"attributes\.csv row 3: 'a\.png' stands in row 2 already"):
        folder_source(folder)
    (folder / "attributes.csv").unlink()
    (folder / "captions.csv").write_text("file,caption,k\na.png,one,x\na.png,two,y\n")
    assert len(list(folder_source(folder).records())) == 1
    with pytest.raises(ValueError, match=r"captions\.csv row 3, column k: 'y', but row 2 says 'x'"):
        folder_source(folder, label="k")


def test_boxes_beside_images_are_no_captions(tmp_path):
    source = folder_source(
        fill(tmp_path, ["a.png", "b.png"], a__txt="0 0.5 0.5 0.2 0.2\n", b__txt="1 0.1 0.2 0.3 0.4\n")
    )
    assert [record.captions for record in source.records()] == [(), ()] and not source.rejects
    assert "caption" not in source.describe()
