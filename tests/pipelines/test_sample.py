"""Sampling of every kind, as a person asks for it on the command line; the networks are untrained."""

import dataclasses
import io
from pathlib import Path

import pytest
import torch
from commands import refused, succeed
from PIL import Image

from genmodels import export
from pipelines import sample

ASKED = {  # what is asked -> how many pictures come, and how often one is as wide as the model's
    ("gan",): (64, 1),
    ("progan", "--interpolate", "--num", "2"): (20, 1),
    ("infogan", "--traverse"): (30, 1),
    ("infogan", "--class", "3", "--num", "5"): (5, 1),
    ("vae", "--source", "PICTURES"): (6, 2),
    ("autoencoder", "--source", "PICTURES"): (6, 2),
    ("text2image", "--caption", "a small red cat by day", "--caption", "at night a cat", "--num", "4"): (4, 1),
    ("cyclegan", "--source", "PICTURES"): (6, 2),
    ("cyclegan", "--source", "PICTURES", "--direction", "B2A"): (6, 2),
    ("stargan", "--source", "PICTURES", "--attributes", "hat=1,night=0"): (6, 2),
    ("puzzlegan", "--patches", "PICTURES"): (2, 4),
    ("text2image", "--num", "3", "--seed", str(2**63 - 1)): (3, 1),
    ("cyclegan", "--num", "3"): (3, 2),  # under the held-out conditions of the export
}


@pytest.mark.parametrize("asked", ASKED, ids=" ".join)
def test_what_is_asked_for_is_drawn_and_the_same_again(asked, exported, pictures, tmp_path):
    name, *options = [str(pictures) if word == "PICTURES" else word for word in asked]
    folder, (num, wide) = exported(name), ASKED[asked]
    for again in ("a", "b"):
        succeed(sample, "--model", folder, *options, "--out", tmp_path / f"{again}.png", "--each", tmp_path / again)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert len(list((tmp_path / "a").glob("*.png"))) == num
    columns = sample.STEPS if {"--interpolate", "--traverse"} & set(options) else int(num**0.5)
    assert size(tmp_path / "a.png")[0] == columns * (16 * wide + 1)
    assert size(tmp_path / "a" / "00000.png") == (16, 16)


def test_a_user_s_image_is_read_as_the_data_were(sprites_data):
    wide = Image.new("RGBA", (32, 16), (255, 0, 0, 255))
    wide.paste((0, 0, 0, 0), (0, 0, 8, 16))  # the left quarter is transparent
    file = io.BytesIO()
    wide.save(file, "PNG")
    spec = dataclasses.replace(sprites_data.spec, fit="pad", background=(0, 0, 255), resampling="area")
    for kind, row in {"source": "BBBBRRRRRRRRRRRR", "patches": "BBBBRRRRRRRRRRRR"}.items():
        (image,) = sample.read_images([("wide.png", file.getvalue())], spec, kind)
        assert "".join("R" if pixel > 0 else "B" for pixel in image[0, 8].tolist()) == row
        assert (image[0, 0].max() > 0) == (kind == "patches")  # a source lies on a padded ground
    (image,) = sample.read_images([("wide.png", file.getvalue())], sprites_data.spec)  # cropped
    assert image[0, 0].min() > 0


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize(
    "asked, words",
    {
        ("gan", "--caption", "a cat"): ["gan", "caption"],
        ("text2image", "--caption", "xyzzy"): ["xyzzy", "such as"],
        ("stargan", "--source", "PICTURES", "--attributes", "hta=1"): ["'hta'", "did you mean 'hat'"],
        ("stargan", "--source", "PICTURES"): ["attributes"],
        ("cyclegan", "--source", "PICTURES", "--direction", "A2C"): ["A2C", "A2B", "B2A"],
        ("vae", "--source", "no such file"): ["no such file"],
        ("vae", "--source", __file__): ["not an image"],
        ("cyclegan", "--interpolate"): ["cyclegan", "latent"],
        ("gan", "--interpolate", "--traverse"): ["choose one"],
        ("infogan", "--traverse", "--num", "4"): ["--traverse", "--num 4"],
        ("vae", "--source", "PICTURES", "--interpolate"): ["--source", "--interpolate"],
        ("vae", "--source", "PICTURES", "--traverse"): ["--source", "--traverse"],
    }.items(),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_drawn_is_refused_in_one_line(asked, words, exported, pictures, tmp_path):
    name, *options = [str(pictures) if word == "PICTURES" else word for word in asked]
    line = refused(sample, "--model", exported(name), *options, "--out", tmp_path / "x.png")
    assert all(word in line for word in words), line
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    "options, words",
    {
        ("--out", "DIR/grid"): ["--out", ".png, .jpg"],
        ("--out", "DIR/"): ["--out", ".png, .jpg"],
        ("--out", "DIR/folder.png"): ["is a folder"],
        ("--out", "DIR/file/x.png"): ["DIR/file is no folder"],
        ("--each", "DIR/file"): ["--each", "DIR/file is no folder"],
        ("--each", "DIR", "--device", "foo"): ["'foo'", "choices: cpu"],
        ("--each", "DIR", "--device", "cuda:99"): ["'cuda:99'", "choices: cpu"],
        ("--each", "DIR/" + "x" * 300): ["File name too long"],
    }.items(),
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_a_place_or_device_that_is_none_is_refused_before_any_work(options, words, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(export, "load", None)
    line = refused(sample, "--model", tmp_path, *(word.replace("DIR", str(tmp_path)) for word in options))
    assert all(word.replace("DIR", str(tmp_path)) in line for word in words), line


def test_a_caption_decides_what_is_drawn(exported):
    sampler = export.load(exported("text2image"))
    first, second = (sampler.model.encode_condition(caption=[text]) for text in ("a red cat", "a small ghost at night"))
    assert not torch.equal(sampler.sample(1, cond=first), sampler.sample(1, cond=second))


@pytest.mark.parametrize("name, end", {"vae": 2.0, "dcgan": 1.0}.items())
def test_a_traversal_stays_where_latents_are_drawn(name, end, exported):
    sampler = export.load(exported(name))
    moved = sampler.model.traversal(sampler.latents(1)[0], 10)
    assert moved[0, 0, 0].item() == pytest.approx(-end, abs=0.01)
    assert moved[0, -1, 0].item() == pytest.approx(end, abs=0.01)
