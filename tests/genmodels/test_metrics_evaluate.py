"""The scores under one protocol, and the protocol's identity."""

import math
from dataclasses import replace

import pytest
import torch

from genmodels.config import EvaluationConfig, RunConfig, TrainConfig
from genmodels.metrics.evaluate import Protocol, evaluate, reference_scores
from genmodels.metrics.features import Extractor
from genmodels.metrics.judge import Judge
from genmodels.model import GenerativeModel, Strict


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(num: int, channels: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(num, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def extractor(channels: int) -> Extractor:
    return Extractor(channels, 4, "rotation").eval().requires_grad_(False)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "levels"), [(8, {"swd_8"}), (28, {"swd_28"}), (32, {"swd_32", "swd_16"})])
def test_every_score_is_finite_on_every_shape(channels, size, levels):
    scores = evaluate(images(6, channels, size), images(5, channels, size, 1), extractor(channels))
    expected = {"swd", "ms_ssim", "ms_ssim_real", "fid", "kid", "precision", "recall"} | levels
    assert set(scores) == expected
    assert all(math.isfinite(score) for score in scores.values())
    assert scores["swd"] == pytest.approx(sum(scores[level] for level in levels) / len(levels))


def test_without_an_extractor_there_are_no_feature_scores():
    assert set(evaluate(images(4, 1, 8), images(4, 1, 8, 1))) == {"swd", "swd_8", "ms_ssim", "ms_ssim_real"}


def test_evaluate_is_a_function_of_the_seed():
    real, fake = images(5, 1, 8), images(4, 1, 8, 1)
    assert evaluate(real, fake, seed=1) == evaluate(real, fake, seed=1)
    assert evaluate(real, fake, seed=1) != evaluate(real, fake, seed=2)


def test_the_larger_set_is_cut_at_random_and_not_at_its_head():
    fake = images(40, 1, 8)
    mixed = torch.cat([torch.ones(40, 1, 8, 8), images(360, 1, 8, 2)])  # sorted, as by class
    assert evaluate(mixed, fake)["ms_ssim_real"] < 0.3
    assert evaluate(torch.ones(40, 1, 8, 8), fake)["ms_ssim_real"] > 0.99


def test_samples_are_compared_as_they_would_lie_on_disk():
    real, fake = images(6, 1, 8), images(6, 1, 8, 1)
    on_disk = ((fake + 1) * 127.5).round().to(torch.uint8).float() / 127.5 - 1
    assert evaluate(real, fake) == evaluate(real, on_disk)
    assert evaluate(real, fake.sign() * 5) == evaluate(real, fake.sign())


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shapes must agree"):
        evaluate(images(4, 3, 8), images(4, 1, 8))
    with pytest.raises(ValueError, match="shapes must agree"):
        evaluate(images(4, 1, 8), images(4, 1, 16))


def test_samples_that_are_not_finite_are_counted():
    fake = images(5, 1, 8)
    fake[1, 0, 0, 0], fake[3, 0, 2, 2] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="fake: 2 of 5 images"):
        evaluate(images(5, 1, 8), fake)


def test_reference_halves_are_disjoint_and_drawn_at_random():
    levels = torch.linspace(-1, 1, 64)[:, None, None, None].expand(64, 1, 8, 8)  # sorted by brightness
    scores = reference_scores(levels + 0.1 * images(64, 1, 8))
    assert scores["num_images"] == 32
    halves = evaluate(levels[:32] + 0.1 * images(32, 1, 8), levels[32:] + 0.1 * images(32, 1, 8, 1), extractor(1))
    assert reference_scores(levels + 0.1 * images(64, 1, 8), extractor(1))["fid"] < 0.5 * halves["fid"]
    assert reference_scores(images(64, 1, 8), num_images=10)["num_images"] == 10


@pytest.mark.parametrize("num", [4, 7, 8])
def test_every_number_of_images_that_is_scored_has_a_scale(num):
    real, network = images(num, 1, 8), extractor(1)
    scores, reference = evaluate(real, images(num, 1, 8, 1), network), reference_scores(real, network)
    assert scores.keys() - reference.keys() == ({"fid", "kid", "precision", "recall"} if num < 8 else set())
    assert all(math.isfinite(score) for score in reference.values())


PROTOCOL = Protocol(100, 32, "ab", "classes", "bilinear", "cd", "test")


@pytest.mark.parametrize("change", [{"num_images": 99}, {"extractor_sha256": "x"}, {"split": "train"}, {"domain": "B"}])
def test_any_change_of_protocol_changes_its_digest(change):
    assert replace(PROTOCOL, **change).digest != PROTOCOL.digest


def test_a_judge_of_all_domains_compares_with_all_of_them(few_sprites, tmp_path):
    def judge(domain: str | None) -> Judge:
        train, evaluation = TrainConfig(domain=domain), EvaluationConfig(num_images=4, extractor_images=64)
        config = RunConfig(model="vae", dataset="few", settings=Strict(), train=train, evaluation=evaluation)
        return Judge(few_sprites.folder, few_sprites.spec, config, tmp_path / "extractor.safetensors")

    judges = {domain: judge(domain).read("train", 16, 6)[0]["image"] for domain in ("A", "B", "all")}
    assert judges["all"].shape == judges["A"].shape
    assert 0 < sum(bool((x == judges["A"]).flatten(1).all(1).any()) for x in judges["all"]) < 6
    model = GenerativeModel(Strict(), few_sprites.spec)
    assert [judge(domain).protocol(model, 16).domain for domain in (None, "B", "all")] == ["A", "B", "all"]


def test_equal_protocols_have_equal_digests():
    assert Protocol(**PROTOCOL.to_json()).digest == PROTOCOL.digest == "256031b6c0b4"


def test_a_protocol_tells_what_evaluate_does():
    network = extractor(3)
    protocol = Protocol.of(images(5, 3, 8), images(4, 3, 8), network, "data", "test")
    assert (protocol.num_images, protocol.image_size) == (4, 8)
    assert (protocol.extractor_sha256, protocol.resize_filter) == (network.sha256, "bilinear, antialiased, to 32 px")
    assert Protocol.of(images(5, 3, 8), images(4, 3, 8), None, "data", "test").extractor_sha256 == ""
