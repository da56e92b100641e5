"""Key patches: found by their edges, inside the image, apart from each other, the same every time."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from genmodels.config import DatasetConfig
from genmodels.data.key_patches import MAX_OVERLAP, key_patches
from genmodels.data.loader import read_split
from genmodels.data.prepare import prepare
from genmodels.data.reader import ShardReader
from genmodels.data.sources import open_source


def noise(side: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, channels), np.uint8)


def iou(a, b) -> float:
    both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@given(st.integers(12, 300), st.integers(1, 5), st.sampled_from([1, 3]), st.integers(0, 9))
def test_boxes_lie_inside_apart_and_from_top_to_bottom(side, num, channels, seed):
    boxes = key_patches(noise(side, seed, channels), num)
    assert len(boxes) == num
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    assert all(iou(a, b) <= MAX_OVERLAP + 1e-6 for a, b in itertools.combinations(boxes, 2))
    assert [box[1] + box[3] for box in boxes] == sorted(box[1] + box[3] for box in boxes)


@pytest.mark.parametrize("side", [4, 5, 8])
def test_tiny_and_blank_images_have_boxes_too(side):
    for pixels in (noise(side), np.zeros((side, side, 3), np.uint8)):
        boxes = key_patches(pixels, 16)
        assert len(boxes) == 16 and all(box[0] < box[2] <= 1 and box[1] < box[3] <= 1 for box in boxes)


@pytest.mark.parametrize("side", [32, 64, 128, 200])
def test_objects_on_a_plain_ground_are_found(side):
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(20):
        image = Image.new("RGB", (side, side), "white")
        draw = ImageDraw.Draw(image)
        cells = rng.permutation([(x, y) for x in (0.2, 0.5, 0.8) for y in (0.2, 0.5, 0.8)])[:3]
        cells += rng.uniform(-0.04, 0.04, cells.shape)
        for x, y in cells:
            colour = tuple(rng.integers(0, 160, 3).tolist())
            draw.ellipse([(x - 0.08) * side, (y - 0.06) * side, (x + 0.08) * side, (y + 0.06) * side], colour)
        boxes = key_patches(np.asarray(image), 3)
        found += sum(any(a < x < c and b < y < d for a, b, c, d in boxes) for x, y in cells)
    assert found >= 57  # of 60


def test_prepare_writes_the_boxes_of_the_squared_pixels(tmp_path):
    for i in range(6):
        (tmp_path / "s").mkdir(exist_ok=True)
        Image.fromarray(noise(40, i)[:, :30]).save(tmp_path / f"s/{i}.png")
    config = DatasetConfig(source=str(tmp_path / "s"), image_size=32, num_parts=3)
    spec = prepare("toy", config, tmp_path / "out", tmp_path, 1)
    assert spec.num_parts == 3 and "parts" in spec.keys
    reader = ShardReader(tmp_path / "out", "train", 32)
    for pixels, boxes in zip(reader.read(np.arange(reader.num)), reader.parts, strict=True):
        assert np.allclose(key_patches(pixels, 3), boxes)
    assert read_split(tmp_path / "out", "train", 8, 9)[0]["parts"].shape == (reader.num, 3, 4)
    twice = prepare("toy", config, tmp_path / "two", tmp_path, 2)
    assert twice.digest == spec.digest


def test_a_source_with_parts_of_its_own_takes_no_number_of_parts(tmp_path):
    with pytest.raises(ValueError, match="num_parts .* source 'sprites'"):
        open_source(DatasetConfig(source="sprites", num_parts=3), tmp_path)
