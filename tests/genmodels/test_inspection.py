"""What is said of a prepared data set is exactly what was put into it."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genmodels.config import DatasetConfig
from genmodels.data import contact
from genmodels.data.contact import contact_sheet
from genmodels.data.findings import Copy, Count, Groups, Reason, Sides, Spread
from genmodels.data.inspection import inspect
from genmodels.data.prepare import prepare
from genmodels.data.reader import ShardReader


def png(colour: tuple[int, int, int], size=(12, 12)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def noise(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def made(folder: Path, files: dict[str, bytes | str], **values) -> Path:
    """A prepared data set of these files."""
    for name, data in files.items():
        path = folder / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    settings = {"image_size": 8, "holdout": 0.3, "max_reject_fraction": 0.9, **values}
    prepare("toy", DatasetConfig(source=str(folder / "source"), **settings), folder / "out", folder, 1)
    return folder / "out"


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """Ten reds and six blues, one pair of equal files, four files that are of no use."""
    files: dict[str, bytes | str] = {f"red/{i}.png": png((100 + 10 * i, 0, 0)) for i in range(9)}
    files |= {f"blue/{i}.png": png((0, 0, 100 + 10 * i), (24, 6)) for i in range(6)}
    files |= {"red/9.png": files["red/3.png"], "notes.txt": "x", "more.txt": "x"}
    files |= {"red/text.png": "no image", "blue/none.png": ""}
    return made(tmp_path_factory.mktemp("classes"), files)


def test_counts_add_up_and_every_reject_has_its_reason(classes):
    found = inspect(classes)
    assert (found.found, found.accepted, found.rejected) == (20, 16, 4)
    assert found.reasons == (
        Reason("not an image file", 2, ("more.txt", "notes.txt")),
        Reason("empty file", 1, ("blue/none.png",)),
        Reason("not an image", 1, ("red/text.png",)),
    )
    assert [(each.name, each.train + each.test) for each in found.classes] == [("blue", 6), ("red", 10)]
    assert sum(each.train for each in found.classes) == found.spec.num_train
    labels = ShardReader(classes, "test", 8).labels
    assert [each.test for each in found.classes] == [(labels == 0).sum(), (labels == 1).sum()]


def test_no_more_than_five_files_are_named_of_a_reason(tmp_path):
    files: dict[str, bytes | str] = {f"{i}.txt": "x" for i in range(7)}
    (reason,) = inspect(made(tmp_path, {**files, "a.png": png((0, 0, 0)), "b.png": png((9, 9, 9))})).reasons
    assert reason == Reason("not an image file", 7, tuple(f"{i}.txt" for i in range(5)))


def test_originals_are_measured_before_they_were_squared(classes):
    originals = inspect(classes).originals
    assert originals.width == Spread(12, 12.0, 24) and originals.height == Spread(6, 12.0, 12)
    assert originals.aspect == Spread(1.0, 1.0, 4.0)
    assert originals.shorter == (Count("4 to 7", 6), Count("8 to 15", 10))
    assert originals.shapes == (Count("about square", 10), Count("wide (above 2:1)", 6))
    assert originals.enlarged == 6
    sizes = [path.stat().st_size for path in (classes.parent / "source").glob("*/[0-9].png")]
    assert originals.total_bytes == sum(sizes) and originals.bytes.most == max(sizes)


def test_copies_are_found_and_share_their_split(classes):
    copies = inspect(classes).copies
    assert (copies.images, copies.groups, copies.straddling) == (1, 1, 0)
    (copy,) = copies.largest
    assert sorted(copy.files) == ["red/3.png", "red/9.png"] and (copy.number, {copy.train, copy.test}) == (2, {0, 2})


def test_copies_that_the_source_put_into_both_splits_come_first(tmp_path):
    same, twice = png((1, 1, 1)), png((2, 2, 2))
    files = {f"trainA/{i}.png": twice for i in range(3)} | {"trainA/x.png": same, "testA/y.png": same}
    copies = inspect(made(tmp_path, files | {"trainB/b.png": png((3, 3, 3))})).copies
    assert (copies.images, copies.groups, copies.straddling) == (3, 2, 1)
    assert copies.largest[0] == Copy(2, 1, 1, ("trainA/x.png", "testA/y.png"))
    assert (copies.largest[1].number, copies.largest[1].test) == (3, 0)


def test_domains_are_counted_by_split(tmp_path):
    files = {f"train{domain}/{i}.png": png((i, 0, 99)) for domain, num in (("A", 4), ("B", 3)) for i in range(num)}
    files |= {"testA/5.png": png((50, 0, 0)), "testB/5.png": png((60, 0, 0)), "testB/6.png": png((70, 0, 0))}
    assert inspect(made(tmp_path, files)).domains == (Sides("A", 4, 1), Sides("B", 3, 2))


def test_pixels_are_the_training_images_mean_and_deviation(classes):
    reader = ShardReader(classes, "train", 8)
    values = reader.read(np.arange(reader.num)) / 127.5 - 1
    pixels = inspect(classes).pixels
    assert pixels.images == reader.num
    np.testing.assert_allclose(pixels.mean, values.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(pixels.std, values.std((0, 1, 2)), atol=1e-12)


TABLES = {
    "captions.csv": "file,caption\n0.png,A red cat\n0.png,a cat\n1.png,the red dog runs\n2.png,one bird\n3.png,a cat\n",
    "attributes.csv": "file,who,hat,night\n0.png,x,1,0\n1.png,x,1,1\n2.png,y,0,1\n3.png,y,1,0\n",
}


@pytest.fixture(scope="module")
def described(tmp_path_factory) -> Path:
    """Four images with captions, attributes, key parts and groups: one of the two groups is held out."""
    images = {f"{i}.png": noise(i) for i in range(4)}
    return made(tmp_path_factory.mktemp("described"), {**images, **TABLES}, split_by="who", num_parts=2)


def test_attributes_are_counted_alone_and_in_pairs(described):
    attributes = inspect(described).attributes
    assert [(each.name, each.train + each.test) for each in attributes.counts] == [("hat", 3), ("night", 2)]
    assert attributes.together == ((3, 1), (1, 2))
    held_out = ShardReader(described, "test", 8).attributes.sum(0)
    assert [each.test for each in attributes.counts] == held_out.tolist()


def test_captions_are_counted_by_words_and_those_never_trained_on(described):
    captions = inspect(described).captions
    assert (captions.number, captions.an_image, captions.words) == (5, Spread(1, 1.0, 2), Spread(2, 2.0, 4))
    assert captions.frequent[:3] == (Count("a", 3), Count("cat", 3), Count("red", 2)) and captions.cut == 0
    test, train = ShardReader(described, "test", 8), ShardReader(described, "train", 8)
    known = {word for several in train.captions for caption in several for word in caption.lower().split()}
    held_out = [word for several in test.captions for caption in several for word in caption.lower().split()]
    assert captions.vocabulary == len(known)
    assert captions.unknown == sum(word not in known for word in held_out) / len(held_out) > 0


def test_groups_stay_on_one_side(described):
    assert inspect(described).groups == Groups("who", 1, 1, 0, Spread(2, 2.0, 2))


def test_everything_is_plain_json(described, classes):
    for folder in (described, classes):
        assert json.loads(json.dumps(asdict(inspect(folder))))["spec"]["name"] == "toy"


# --- the contact sheet -----------------------------------------------------------------------------------------------


def colours(sheet: Image.Image) -> dict[tuple[int, int, int], int]:
    found = sheet.getcolors(sheet.width * sheet.height)
    return {colour: count for count, colour in found}


def in_split(folder: Path, split: str) -> set[tuple[int, int, int]]:
    reader = ShardReader(folder, split, 8)
    return {tuple(image[0, 0].tolist()) for image in reader.read(np.arange(reader.num))}


def test_held_out_images_lie_on_the_tinted_right_and_nowhere_else(classes):
    sheet = contact_sheet(classes)
    edge = int(np.flatnonzero((np.asarray(sheet)[0] == contact.HELD_OUT).all(1))[0])
    left, right = (set(colours(sheet.crop(box))) for box in ((0, 0, edge, sheet.height), (edge, 0, *sheet.size)))
    train, test = in_split(classes, "train"), in_split(classes, "test")
    assert len(train & left) >= 8 and not train & right
    assert test & right and not test & left


def test_small_images_are_enlarged_by_a_whole_factor(classes):
    shown = colours(contact_sheet(classes))
    assert {shown[colour] // contact.TILE**2 for colour in in_split(classes, "test") if colour in shown} <= {1, 2}
    assert all(shown[colour] % contact.TILE**2 == 0 for colour in in_split(classes, "train") if colour in shown)


def test_large_images_are_scaled_down(tmp_path):
    files = {"a.png": png((200, 0, 0), (300, 300)), "b.png": png((0, 200, 0), (300, 300))}
    shown = colours(contact_sheet(made(tmp_path, files, image_size=300, pyramid=False)))
    assert shown[(200, 0, 0)] == shown[(0, 200, 0)] == contact.TILE**2


def test_key_parts_are_outlined(described, classes):
    for colour in contact.PARTS[:2]:
        assert colour in colours(contact_sheet(described)) and colour not in colours(contact_sheet(classes))


def test_the_sheet_is_always_the_same(described):
    assert contact_sheet(described).tobytes() == contact_sheet(described).tobytes()


@pytest.mark.parametrize("num_classes, shown", [(3, 3), (30, contact.MAX_ROWS)])
def test_many_classes_are_shown_in_part(num_classes, shown, tmp_path):
    files = {f"c{c:02d}/{i}.png": png((8 * c, 100 + i, 0)) for c in range(num_classes) for i in range(2)}
    sheet = contact_sheet(made(tmp_path, files, holdout=0.0))
    assert len({red for red, green, blue in colours(sheet) if green >= 100 and blue == 0}) == shown


def test_gray_images_and_points_are_drawn_too(tmp_path):
    gray = contact_sheet(made(tmp_path / "gray", {"a.png": noise(0), "b.png": noise(1)}, channels=1))
    assert gray.mode == "RGB"
    prepare("ring", DatasetConfig(source="ring", num_images=300), tmp_path / "ring", tmp_path, 1)
    assert len(colours(contact_sheet(tmp_path / "ring"))) > 8 and inspect(tmp_path / "ring").originals is None


@pytest.mark.parametrize("caption", ["", "x" * 5000, "two\nlines\x00\x1b[31m", "漢字 and 🎈", "[b]bold[/b] " * 90])
def test_any_caption_can_be_drawn(caption):
    lines = contact._wrapped(caption, 3)
    assert len(lines) <= 3 and all(contact._width(line) <= contact.TILE and line.isprintable() for line in lines)
