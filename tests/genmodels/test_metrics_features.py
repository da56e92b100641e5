"""The feature network, and the feature distances against closed forms and hand-made sets."""

import math

import pytest
import torch
from PIL import Image

from genmodels.config import DatasetConfig, EvaluationConfig
from genmodels.data.prepare import prepare
from genmodels.metrics import features
from genmodels.metrics.features import (
    Extractor,
    accuracy,
    extract,
    frechet_distance,
    kernel_distance,
    load_extractor,
    precision_recall,
    rotate,
    save_extractor,
    train_extractor,
)
from genmodels.metrics.judge import ensure_extractor


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bars(num: int, size: int = 12, channels: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images with one bright bar at the top (class 0), bottom, left or right; labels int64 [num]."""
    images = 0.3 * torch.randn(num, channels, size, size, generator=rng(seed))
    labels = torch.arange(num) % 4
    thick = size // 4
    for label, place in enumerate([(slice(thick), slice(None)), (slice(-thick, None), slice(None))]):
        images[labels == label, :, place[0], place[1]] += 0.8
        images[labels == label + 2, :, place[1], place[0]] += 0.8
    return images.clamp(-1, 1), labels


@pytest.fixture(scope="module")
def trained() -> Extractor:
    torch.set_num_threads(1)
    return train_extractor(*bars(400), num_images=3000)


def test_extractor_learns_easy_classes(trained):
    assert trained.task == "classes"
    assert accuracy(trained, *bars(200, seed=1)) > 0.9
    untrained = train_extractor(*bars(400), num_images=64)
    assert accuracy(untrained, *bars(200, seed=1)) < 0.7


def test_extractor_without_labels_learns_rotations():
    images = bars(400)[0][::4]  # the bar is at the top
    extractor = train_extractor(images, num_images=3000)
    assert extractor.task == "rotation"
    assert accuracy(extractor, bars(100, seed=1)[0][::4]) > 0.9


def test_a_single_class_is_not_learned_from(tmp_path):
    images = bars(8)[0]
    with pytest.raises(ValueError, match="needs two of them"):
        train_extractor(images, torch.zeros(8, dtype=torch.int64), num_images=64)
    for number, picture in enumerate(images):
        Image.fromarray(((picture[0] + 1) * 127.5).byte().numpy()).save(tmp_path / f"{number}.png")
    rows = "".join(f"{number}.png,bar\n" for number in range(8))
    (tmp_path / "attributes.csv").write_text("file,kind\n" + rows)
    config = DatasetConfig(source=str(tmp_path), image_size=12, channels=1, label="kind")
    spec = prepare("bars", config, tmp_path / "out", tmp_path, 1)
    assert spec.classes == ("bar",)
    network = ensure_extractor(tmp_path / "x", tmp_path / "out", spec, EvaluationConfig(extractor_images=64))
    assert network.task == "rotation"


def test_training_is_deterministic_and_leaves_the_global_generator():
    state = torch.get_rng_state()
    first, second, other = (train_extractor(*bars(64), num_images=256, seed=seed).sha256 for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert first == second
    assert first != other


def test_save_and_load_keep_bytes_and_hash(trained, tmp_path):
    save_extractor(trained, tmp_path / "a.safetensors")
    loaded = load_extractor(tmp_path / "a.safetensors")
    save_extractor(loaded, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert loaded.sha256 == trained.sha256
    assert loaded.config() == trained.config()
    images = bars(8)[0]
    assert torch.equal(extract(loaded, images), extract(trained, images))


def test_hash_changes_with_any_weight(trained, tmp_path):
    save_extractor(trained, tmp_path / "a.safetensors")
    changed = load_extractor(tmp_path / "a.safetensors")
    changed.state_dict()["stages.2.1.running_var"][5] += 1e-3
    assert changed.sha256 != trained.sha256


def test_a_foreign_safetensors_file_is_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors is not a feature network"):
        load_extractor(tmp_path / "x.safetensors")


@pytest.mark.parametrize("size", [4, 8, 28, 32, 64])
def test_features_of_any_size(trained, size):
    assert extract(trained, torch.zeros(3, 1, size, size)).shape == (3, 128)


def test_features_of_one_image_do_not_depend_on_its_chunk(trained):
    images = bars(600)[0]
    assert torch.allclose(extract(trained, images)[590:], extract(trained, images[590:]), atol=1e-5)


def test_extractor_names_wrong_channels(trained):
    with pytest.raises(ValueError, match="1 channels"):
        trained(torch.zeros(2, 3, 8, 8))


def test_rotate_turns_each_image_by_its_own_number():
    images = torch.randn(4, 1, 5, 5, generator=rng(0))
    turned = rotate(images, torch.tensor([0, 1, 2, 3]))
    assert torch.equal(turned[0], images[0])
    assert torch.equal(turned[2], images[2].flip(1, 2))
    assert torch.equal(rotate(turned, torch.tensor([0, 3, 2, 1])), images)


def whitened(features: torch.Tensor) -> torch.Tensor:
    """The features with sample mean 0 and sample covariance exactly the identity."""
    centred = features.double() - features.double().mean(0)
    factor = torch.linalg.cholesky(centred.T @ centred / (len(centred) - 1))
    return torch.linalg.solve_triangular(factor, centred.T, upper=False).T


def test_frechet_distance_of_gaussians_is_the_closed_form():
    real, fake = (whitened(torch.randn(400, 5, generator=rng(seed))) for seed in (0, 1))
    scale, shift = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0]), torch.tensor([0.0, 1.0, -2.0, 0.0, 0.5])
    expected = float(shift.square().sum() + (scale - 1).square().sum())  # commuting covariances
    assert frechet_distance(real, fake * scale + shift) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(real, real.flip(0)) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_covariances_that_do_not_commute():
    real, fake = (whitened(torch.randn(400, 2, generator=rng(seed))) for seed in (0, 1))
    first, second = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double()
    cov_first, cov_second = first @ first.T, second @ second.T
    # For 2 x 2 matrices tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)).
    product = cov_first @ cov_second
    root_trace = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    expected = float(cov_first.trace() + cov_second.trace()) - 2 * root_trace
    assert frechet_distance(real @ first.T, fake @ second.T) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_equals_the_unbiased_estimate_and_leaves_the_global_generator():
    real, fake = torch.randn(40, 6, generator=rng(0)), torch.randn(40, 6, generator=rng(1)) + 0.7

    def kernel(x, y):
        return sum((float(x[i] @ y[j]) / 6 + 1) ** 3 for i in range(40) for j in range(40) if i != j or x is not y)

    expected = (kernel(real, real) + kernel(fake, fake)) / (40 * 39) - 2 * kernel(real, fake) / 40**2
    state = torch.get_rng_state()
    assert kernel_distance(real, fake) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(state, torch.get_rng_state())


def test_kernel_distance_over_subsets_is_near_that_over_all(monkeypatch):
    real, fake = torch.randn(300, 4, generator=rng(0)), torch.randn(300, 4, generator=rng(1)) + 1
    whole = kernel_distance(real, fake)
    monkeypatch.setattr(features, "SUBSET_SIZE", 100)
    assert kernel_distance(real, fake) != whole
    assert kernel_distance(real, fake) == pytest.approx(whole, rel=0.1)
    assert kernel_distance(real, fake, seed=1) == kernel_distance(real, fake, seed=1)


def test_precision_recall_of_equal_sets_is_one_and_of_distant_ones_zero():
    real = torch.randn(300, 4, generator=rng(0))
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)


def test_a_collapsed_fake_has_precision_without_recall():
    real = torch.randn(600, 2, generator=rng(0))
    fake = real[0] + 1e-3 * torch.randn(600, 2, generator=rng(1))
    precision, recall = precision_recall(real, fake)
    assert precision > 0.95
    assert recall < 0.02
    assert precision_recall(fake, real) == (recall, precision)


def test_half_the_modes_give_half_the_recall():
    real = torch.cat([torch.randn(200, 3, generator=rng(0)), torch.randn(200, 3, generator=rng(1)) + 50])
    fake = torch.randn(400, 3, generator=rng(2))
    precision, recall = precision_recall(real, fake)
    assert precision > 0.8
    assert 0.4 < recall <= 0.5


def test_precision_on_a_line_by_hand():
    real = torch.tensor([0.0, 1.0, 3.0, 7.0])[:, None]  # with k = 1: radii 1, 1, 2, 4
    fake = torch.tensor([-1.5, -0.5, 4.9, 11.5])[:, None]  # radii 1, 1, 5.4, 6.6
    precision, recall = precision_recall(real, fake, k=1)
    assert precision == 0.5  # -0.5 by the first, 4.9 by the third
    assert recall == 1.0  # 0 by the second; 1 and 3 by the third, 7 too


def test_precision_asks_for_more_than_k_images():
    with pytest.raises(ValueError, match="more than 3 images"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))
