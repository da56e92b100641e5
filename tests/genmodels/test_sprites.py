"""The embedded data set is deterministic, and its ground truth is true."""

import hashlib
import math
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from genmodels.data.sources import sprites
from genmodels.data.sources.sprites import (
    ATTRIBUTES,
    CLASSES,
    COLOURS,
    Sprite,
    SpritesSource,
    caption,
    draw_sprite,
    part_boxes,
    render,
    with_attributes,
)

ONE_OF_EACH = [draw_sprite(index, seed=3) for index in range(len(CLASSES))]
PINNED = Sprite(
    kind="house",
    colour="blue",
    large=0,
    striped=0,
    hat=0,
    night=1,
    smiling=1,
    ground=1,
    mirrored=False,
    x=0.484901123046875,
    y=0.9321267700195313,
    zoom=1.02966796875,
    turn=7.12255859375,
    wording=57259,
)
DIGEST = """
import hashlib
from genmodels.data.sources.sprites import draw_sprite, render
pictures = [render(draw_sprite(i), 32, style).tobytes() for i in range(10) for style in ("colour", "line")]
print(hashlib.sha256(b"".join(pictures)).hexdigest())
"""


def background(sprite: Sprite, size: int, style: sprites.Style = "colour") -> np.ndarray:
    """The picture without its figure."""
    return render(replace(sprite, x=9.0), size, style)


def changed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two pictures differ, bool [H, W]."""
    return (a != b).any(-1)


def inside(box: sprites.Box, size: int, margin: int = 0) -> np.ndarray:
    """The box as a mask [H, W], `margin` pixels wider on every side."""
    mask = np.zeros((size, size), bool)
    left, top = (max(math.floor(edge * size) - margin, 0) for edge in box[:2])
    right, bottom = (math.ceil(edge * size) + margin for edge in box[2:])
    mask[top:bottom, left:right] = True
    return mask


def test_pictures_are_the_same_in_every_process():
    digest = subprocess.check_output([sys.executable, "-c", DIGEST], text=True).strip()
    pictures = [render(draw_sprite(i), 32, style).tobytes() for i in range(10) for style in ("colour", "line")]
    assert digest == hashlib.sha256(b"".join(pictures)).hexdigest()


def test_factors_are_a_fixed_function_of_seed_and_index():
    sprite = draw_sprite(123, seed=4)
    assert sprite == draw_sprite(123, seed=4)
    assert sprite == PINNED
    assert sprite not in (draw_sprite(123, seed=5), draw_sprite(133, seed=4))


def test_classes_are_balanced_and_attributes_balanced_and_independent():
    drawn = [draw_sprite(index) for index in range(2000)]
    assert set(Counter(sprite.kind for sprite in drawn).values()) == {200}
    assert min(Counter(sprite.colour for sprite in drawn).values()) > 2000 / len(COLOURS) * 0.75
    bits = np.array([[getattr(sprite, name) for name in ATTRIBUTES] for sprite in drawn])
    labels = np.array([[sprite.kind == kind for kind in CLASSES] for sprite in drawn])
    assert set(np.unique(bits)) == {0, 1}
    assert np.allclose(bits.mean(0), 0.5, atol=0.05)
    correlations = np.corrcoef(np.hstack([bits, labels]).T)[: len(ATTRIBUTES)]
    assert np.abs(correlations - np.eye(*correlations.shape)).max() < 0.1


@pytest.mark.parametrize("style", ["colour", "line"])
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_shows_at_32_pixels(name, style):
    for sprite in ONE_OF_EACH:
        for large in (0, 1):
            flips = [with_attributes(replace(sprite, large=large), {name: value}) for value in (0, 1)]
            off, on = (render(flip, 32, style).astype(int) for flip in flips)
            assert (np.abs(on - off).max(-1) > 64).sum() >= 4, (sprite.kind, large)


def test_smile_changes_the_face_alone():
    for sprite in ONE_OF_EACH:
        smiling = with_attributes(sprite, {"smiling": 1})
        difference = changed(render(smiling, 64), render(with_attributes(sprite, {"smiling": 0}), 64))
        assert not (difference & ~inside(part_boxes(smiling)[-1], 64, margin=1)).any()


def test_hat_changes_nothing_below_the_eyes():
    for sprite in ONE_OF_EACH:
        difference = changed(*(render(with_attributes(sprite, {"hat": value}), 64) for value in (0, 1)))
        _, top, _, bottom = part_boxes(sprite)[-1]
        assert not difference[round((top + bottom) / 2 * 64) :].any()


def test_stripes_stay_on_the_figure():
    for sprite in ONE_OF_EACH:
        plain, striped = (render(with_attributes(sprite, {"striped": value}), 64) for value in (0, 1))
        assert not (changed(plain, striped) & ~changed(plain, background(sprite, 64))).any()


def test_night_leaves_the_face_alone():
    for sprite in ONE_OF_EACH:
        difference = changed(*(render(with_attributes(sprite, {"night": value}), 64) for value in (0, 1)))
        assert difference.mean() > 0.2
        assert not (difference & inside(part_boxes(sprite)[-1], 64, margin=-3)).any()


def test_large_covers_more_of_the_picture():
    for sprite in ONE_OF_EACH:
        small, large = (with_attributes(sprite, {"large": value}) for value in (0, 1))
        areas = [changed(render(one, 32), background(one, 32)).sum() for one in (small, large)]
        assert areas[1] > 1.4 * areas[0]


def test_unknown_attribute_is_named():
    with pytest.raises(ValueError, match="'beard'.*smiling"):
        with_attributes(ONE_OF_EACH[0], {"beard": 1})


def test_part_boxes_lie_in_the_picture_and_show_the_figure():
    for index in range(200):
        sprite = draw_sprite(index)
        figure = changed(render(sprite, 32), background(sprite, 32))
        assert len(part_boxes(sprite)) == 3
        for left, top, right, bottom in part_boxes(sprite):
            assert 0 <= left < right <= 1
            assert 0 <= top < bottom <= 1
            mask = inside((left, top, right, bottom), 32)
            assert (figure & mask).sum() > 0.25 * mask.sum(), sprite


def test_dropping_a_part_changes_only_its_box(monkeypatch):
    for sprite in ONE_OF_EACH:
        shapes, picture = sprites.SHAPES[sprite.kind], render(sprite, 64)
        names = [shape.part for shape in shapes if shape.part and shape.paint]
        for name in names:
            box = part_boxes(sprite)[list(dict.fromkeys(shape.part for shape in shapes if shape.part)).index(name)]
            with monkeypatch.context() as patch:
                patch.setitem(sprites.SHAPES, sprite.kind, tuple(shape for shape in shapes if shape.part != name))
                difference = changed(render(sprite, 64), picture)
            assert difference.any()
            assert not (difference & ~inside(box, 64, margin=2)).any(), (sprite.kind, name)


def test_mirroring_mirrors_the_boxes():
    for sprite in ONE_OF_EACH:
        upright = replace(sprite, x=0.5, turn=0.0, mirrored=False)
        reflected = [(1 - right, top, 1 - left, bottom) for left, top, right, bottom in part_boxes(upright)]
        assert np.allclose(part_boxes(replace(upright, mirrored=True)), reflected)


def test_figures_fit_into_the_picture():
    for index in range(500):
        sprite = replace(draw_sprite(index), large=1, hat=1)
        points = [point for shape in sprites._figure(sprite) for point in shape.points]
        assert all(-0.02 <= edge <= 1.02 for point in points for edge in (point.real, point.imag)), sprite


@pytest.mark.parametrize("size", [32, 96])
def test_lines_lie_where_the_colour_picture_has_edges(size):
    for sprite in ONE_OF_EACH:
        colour = render(sprite, size).astype(int)
        black = render(sprite, size, "line").max(-1) < 128
        around = np.lib.stride_tricks.sliding_window_view(
            np.pad(colour, ((2, 2), (2, 2), (0, 0)), "edge"), (5, 5), (0, 1)
        )
        contrast = np.ptp(around, axis=(-2, -1)).max(-1)
        assert black.sum() > 0.03 * size**2
        dark = colour.max(-1) < 60  # the insides of wheels and mouths are black in both
        assert (dark | (contrast > 30))[black].mean() > 0.98, sprite


@pytest.mark.parametrize("size", [4, 8, 32, 33, 128])
def test_pictures_have_the_size_asked_for(size):
    picture = render(ONE_OF_EACH[0], size)
    assert (picture.shape, picture.dtype) == ((size, size, 3), np.uint8)


def test_captions_name_what_is_there():
    for index in range(300):
        sprite = draw_sprite(index)
        for text in caption(sprite):
            assert sprite.kind in text
            assert sprite.colour in text
            assert any(word in text.split() for word in (("small", "little"), ("large", "big"))[sprite.large])
            assert ("night" in text or "moon" in text) == sprite.night
            for name, stem in {"striped": "stripe", "hat": " hat", "smiling": "smil"}.items():
                assert (stem in text) == getattr(sprite, name)


@pytest.mark.parametrize("num_images", [20, 21, 57, 600])
def test_records_are_unpaired_in_training_and_aligned_in_test(num_images):
    records = list(SpritesSource(num_images, size=8).records())
    assert len(records) == len({record.key for record in records}) == num_images
    numbers = {
        (domain, split): {r.key.split("/")[2] for r in records if (r.domain, r.split) == (domain, split)}
        for domain in "AB"
        for split in ("train", "test")
    }
    assert numbers["A", "test"] == numbers["B", "test"] != set()
    groups = [numbers["A", "train"], numbers["B", "train"], numbers["A", "test"]]
    assert len(set.union(*groups)) == sum(map(len, groups))
    assert len(groups[0]) == pytest.approx(0.7 * len(groups[0] | groups[1]), abs=1)


def test_test_pair_shows_the_same_sprite():
    a, b = (record for record in SpritesSource(20).records() if record.split == "test")
    assert (a.label, a.attributes, a.captions, a.parts) == (b.label, b.attributes, b.captions, b.parts)
    assert {a.domain, b.domain} == {"A", "B"}


def test_record_alone_is_read_by_another_source_object():
    source = pickle.loads(pickle.dumps(SpritesSource(40, size=16, seed=2)))
    for record in SpritesSource(400, size=16, seed=2).records():
        if record.key in {"A/train/000007", "B/train/000300"}:
            picture = source.read(record)
            assert (picture.mode, picture.size) == ("RGB", (16, 16))
            expected = render(
                draw_sprite(int(record.key[-6:]), seed=2), 16, "colour" if record.domain == "A" else "line"
            )
            assert np.array_equal(np.asarray(picture), expected)
            assert np.asarray(picture).std() > 0


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="num_images is 19"):
        SpritesSource(19)
