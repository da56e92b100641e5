"""Points of the plane pass through data, scores and pictures as images of one pixel and two channels."""

import math

import numpy as np
import pytest
import torch

from genmodels.config import DatasetConfig, EvaluationConfig, RunConfig, TrainConfig
from genmodels.data.loader import Loader, read_split
from genmodels.data.prepare import prepare
from genmodels.data.reader import ShardReader, verify
from genmodels.data.shards import open_shards
from genmodels.data.sources.ring import NUM_MODES, RADIUS, SIGMA, ring_centres, ring_log_density, ring_points
from genmodels.metrics.evaluate import evaluate, reference_scores
from genmodels.metrics.judge import Judge, ensure_extractor
from genmodels.model import GenerativeModel, Strict
from genmodels.pictures import grid, save_each
from genmodels.settings_file import ConfigError
from genmodels.trainer import to_float
from genmodels.validation import validated

NUM = 4000


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ring") / "ring"
    return folder, prepare("ring", DatasetConfig(source="ring", num_images=NUM), folder, folder, 1)


def test_the_word_is_enough_and_other_shapes_are_refused():
    config = DatasetConfig(source="ring")
    assert (config.image_size, config.channels, config.encoding) == (1, 2, "raw")
    for wrong in ({"image_size": 32}, {"channels": 3}, {"encoding": "png"}):
        with pytest.raises(ConfigError, match="datasets.r.*for source 'ring', got"):
            validated(DatasetConfig, {"source": "ring", **wrong}, "datasets.r")
    for wrong in ({"image_size": 1}, {"channels": 2}):
        with pytest.raises(ConfigError, match=f"datasets.x.{next(iter(wrong))}: input should be"):
            validated(DatasetConfig, {"source": "sprites", **wrong}, "datasets.x")


def test_every_point_is_a_sample_even_where_two_are_equal(ring):
    folder, spec = ring
    assert (spec.channels, spec.sizes, spec.keys) == (2, (1,), ("image", "label"))
    assert spec.num_train + spec.num_test == NUM and 0.07 * NUM < spec.num_test < 0.13 * NUM
    assert open_shards(folder).counts["duplicates"] == 0
    pixels = ShardReader(folder, "train", 1).read(np.arange(spec.num_train)).reshape(-1, 2)
    assert len(np.unique(pixels, axis=0)) < spec.num_train
    verify(folder)


def test_points_lie_on_the_ring_with_the_label_of_their_mode(ring):
    batch, _ = read_split(ring[0], "test", 1, NUM)
    points = to_float(batch["image"]).flatten(1)
    away = (points - ring_centres()[batch["label"]]).norm(dim=1)
    assert away.max() < 6 * SIGMA and away.square().mean().item() == pytest.approx(2 * SIGMA**2, rel=0.2)
    assert batch["label"].unique().tolist() == list(range(NUM_MODES))
    with Loader(ring[0], ("image", "label"), 1, 16, seed=0, mirror=True) as loader:
        assert next(loader)["image"].shape == (16, 2, 1, 1)


def test_the_density_integrates_to_one_and_peaks_on_the_modes():
    axis = torch.linspace(-1, 1, 401)
    points = torch.cartesian_prod(axis, axis)
    assert (ring_log_density(points).exp().sum() * (2 / 400) ** 2).item() == pytest.approx(1, abs=1e-3)
    peak = -math.log(2 * math.pi * SIGMA**2 * NUM_MODES)
    assert ring_log_density(torch.tensor([[RADIUS, 0.0]])).item() == pytest.approx(peak, abs=1e-4)


def points(num: int, seed: int) -> torch.Tensor:
    return ring_points(num, torch.Generator().manual_seed(seed)).view(num, 2, 1, 1)


def test_points_are_scored_as_they_are():
    real, fake = points(1000, 0), points(1000, 1)
    same, shrunk = evaluate(real, fake), evaluate(real, fake / 2)
    lost = evaluate(real, fake[fake[:, 0, 0, 0] > 0])
    assert set(same) == {"swd", "swd_1"} and evaluate(real, real)["swd"] < 1e-3
    assert same["swd"] < 40 < 150 < min(shrunk["swd"], lost["swd"])
    # Half the radius moves the projections by half of what they are: 1000 (0.7 / 2) E|cos|.
    assert shrunk["swd"] == pytest.approx(1000 * RADIUS / 2 * 2 / math.pi, rel=0.1)
    assert set(reference_scores(real)) == {"swd", "swd_1", "num_images"}


class Points(GenerativeModel):
    """Draws from the ring itself."""

    Config = Strict
    ema_nets = ()


def test_a_judge_of_points_has_no_feature_network(ring, tmp_path):
    folder, spec = ring
    extractor = tmp_path / "extractor.safetensors"
    assert ensure_extractor(extractor, folder, spec, EvaluationConfig()) is None and not extractor.exists()
    config = RunConfig(
        model="x", dataset="ring", settings=Strict(), train=TrainConfig(), evaluation=EvaluationConfig(num_images=300)
    )
    judge, model = Judge(folder, spec, config, extractor), Points(Strict(), spec)
    reals = judge.reals(model, 1)
    assert reals.shape == (300, 2, 1, 1) and judge.protocol(model, 1).extractor_sha256 == ""
    assert evaluate(reals, points(300, 3), judge.extractor).keys() == {"swd", "swd_1"}


def test_points_are_drawn_as_one_scatter_plot(tmp_path):
    picture = np.asarray(grid(torch.tensor([[0.9, 0.9], [-0.9, -0.9]]).view(2, 2, 1, 1), min_side=32))
    down, right = np.argwhere((picture < 255).any(2)).T
    assert picture.shape[0] == picture.shape[1] and np.corrcoef(down, right)[0, 1] < -0.99  # up is +1
    assert grid(torch.full((3, 2, 1, 1), torch.nan)).size == picture.shape[:2]
    assert save_each(points(3, 0), tmp_path) == 3
