"""The sliced Wasserstein distance and MS-SSIM against oracles, limits and order."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance

from genmodels.metrics.images import check_images, quantize
from genmodels.metrics.ms_ssim import ms_ssim, ms_ssim_of_pairs, scales_and_window
from genmodels.metrics.swd import laplacian_pyramid, sliced_distance, sliced_wasserstein, standardized_patches, upsample


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def textures(num: int, size: int = 32, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Smooth random fields with some grain, in [-1, 1]."""
    coarse = torch.randn(num, channels, 4, 4, generator=rng(seed))
    grain = torch.randn(num, channels, size, size, generator=rng(seed + 1))
    return (0.5 * F.interpolate(coarse, size, mode="bilinear", align_corners=False) + 0.1 * grain).clamp(-1, 1)


def blurred(images: torch.Tensor, side: int) -> torch.Tensor:
    return F.avg_pool2d(F.pad(images, [side // 2] * 4, mode="reflect"), side, 1)


def test_swd_of_a_set_with_itself_reordered_is_far_below_that_to_noise():
    images = blurred(textures(96), 3)  # white grain would be noise's equal at the finest level
    same = sliced_wasserstein(images, images.flip(0))
    noise = sliced_wasserstein(images, torch.rand(96, 3, 32, 32, generator=rng(5)) * 2 - 1)
    assert list(same) == [32, 16]
    assert all(0 < 4 * same[size] < noise[size] for size in same)


def test_swd_falls_with_the_number_of_images():
    few = sliced_wasserstein(textures(16), textures(16, seed=9))
    many = sliced_wasserstein(textures(256), textures(256, seed=9))
    assert all(many[size] < 0.5 * few[size] for size in few)


def test_sliced_distance_is_symmetric_and_zero_only_for_equal_sets():
    first, second = torch.randn(500, 12, generator=rng(0)), torch.rand(500, 12, generator=rng(1))
    forth, back = sliced_distance(first, second, rng(2)), sliced_distance(second, first, rng(2))
    assert forth == pytest.approx(back, rel=1e-6)
    assert forth > 0.1
    assert sliced_distance(first, first.flip(0), rng(2)) < 1e-6


def test_swd_is_symmetric_up_to_the_draw_of_patches():
    first, second = textures(64), blurred(textures(64, seed=7), 3)
    forth, back = sliced_wasserstein(first, second), sliced_wasserstein(second, first)
    assert forth == pytest.approx(back, rel=0.1)


def test_sliced_distance_equals_scipy_on_every_direction():
    first, second = torch.randn(300, 9, generator=rng(0)), 2 * torch.randn(300, 9, generator=rng(1)) + 0.5
    directions = torch.randn(512, 9, generator=rng(2))
    directions /= directions.norm(dim=1, keepdim=True)
    oracle = [wasserstein_distance((first @ d).numpy(), (second @ d).numpy()) for d in directions]
    assert sliced_distance(first, second, rng(2)) == pytest.approx(sum(oracle) / 512, rel=1e-5)


def test_swd_at_the_finest_level_grows_with_blur():
    images, others = textures(64), textures(64, seed=7)
    distances = [sliced_wasserstein(images, blurred(others, side))[32] for side in (1, 3, 5, 9)]
    assert distances == sorted(distances)
    assert distances[-1] > 2 * distances[0]


def test_swd_is_a_function_of_the_seed_and_leaves_the_global_generator():
    images, others = textures(8), textures(8, seed=3)
    state = torch.get_rng_state()
    assert sliced_wasserstein(images, others, seed=1) == sliced_wasserstein(images, others, seed=1)
    assert sliced_wasserstein(images, others, seed=1) != sliced_wasserstein(images, others, seed=2)
    assert torch.equal(state, torch.get_rng_state())


def test_swd_asks_for_equal_numbers():
    with pytest.raises(ValueError, match="equal shape"):
        sliced_wasserstein(textures(8), textures(9))


def test_swd_of_a_constant_set_is_finite():
    assert all(0 < d < 2e3 for d in sliced_wasserstein(textures(8), torch.full((8, 3, 32, 32), 0.3)).values())


@pytest.mark.parametrize(
    ("size", "levels"), [(4, [4]), (8, [8]), (16, [16]), (28, [28]), (32, [32, 16]), (33, [33, 17]), (64, [64, 32, 16])]
)
def test_laplacian_levels_sum_back_to_the_image(size, levels):
    images = textures(2, size)
    pyramid = list(laplacian_pyramid(images))
    assert [level.shape[-1] for level in pyramid] == levels
    whole = pyramid.pop()
    while pyramid:
        finer = pyramid.pop()
        whole = finer + upsample(whole, finer.shape[-1])
    assert torch.allclose(whole, quantize(images) * 127.5, atol=1e-3)


def test_laplacian_of_a_ramp_is_flat_inside():
    ramp = torch.linspace(-1, 1, 32).expand(2, 1, 32, 32)
    finest, _ = laplacian_pyramid(ramp)
    assert finest[..., 6:-6, 6:-6].abs().max() < 1  # below the step of the quantisation
    assert quantize(ramp).mul(127.5)[0, 0, 0].diff().min() > 7  # where the ramp itself climbs 8 a pixel


def test_patches_are_standardised_a_channel_and_stay_inside_the_image():
    level = torch.randn(50, 3, 16, 16, generator=rng(0)) * torch.tensor([1.0, 10.0, 100.0])[:, None, None] + 7
    patches = standardized_patches(level, rng(1)).view(50 * 128, 49, 3)
    assert torch.allclose(patches.mean(dim=(0, 1)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(patches.std(dim=(0, 1)), torch.ones(3), atol=1e-3)


def test_a_patch_is_a_window_of_its_own_image():
    level = textures(3, 9)
    patches = standardized_patches(level, rng(1)).view(3, 128, 7, 7, 3).permute(0, 1, 4, 2, 3)
    values = torch.stack([level[n, :, y : y + 7, x : x + 7] for n in range(3) for y in range(3) for x in range(3)])
    flat = patches[:, :, 0].flatten(2)
    windows = values[:, 0].flatten(1).view(3, 9, 49)
    # Standardising is one affine map for the set: correlation 1 with exactly one window.
    unit = [F.normalize(t - t.mean(-1, keepdim=True), dim=-1) for t in (flat, windows)]
    best = (unit[0] @ unit[1].transpose(1, 2)).max(dim=-1)
    assert best.values.min() > 0.9999
    assert all(len(found.unique()) == 9 for found in best.indices)


@pytest.mark.parametrize("size", [4, 8, 16, 28, 32, 64, 128])
def test_ms_ssim_of_identical_images_is_one_and_of_others_less(size):
    images = textures(4, size)
    assert torch.allclose(ms_ssim(images, images), torch.ones(4), atol=1e-4)
    assert 0 <= ms_ssim_of_pairs(images, num_pairs=6) < 0.9
    assert ms_ssim_of_pairs(images[:1].repeat(3, 1, 1, 1), num_pairs=4) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("size", [*range(4, 40), 56, 64, 100, 128, 175, 176, 256])
def test_ms_ssim_window_fits_the_coarsest_scale(size):
    num_scales, window = scales_and_window(size)
    assert window % 2 == 1
    assert window <= size >> (num_scales - 1)
    assert float(ms_ssim(*torch.zeros(2, 1, 1, size, size))) == pytest.approx(1, abs=1e-3)


def test_ms_ssim_falls_as_images_part():
    images = textures(16)
    noisy = [images + strength * torch.randn(images.shape, generator=rng(4)) for strength in (0.0, 0.1, 0.3, 1.0)]
    scores = [float(ms_ssim(images, other).mean()) for other in noisy]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.7


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 8, 8), "at least 2 images, got 1"),
        (torch.zeros(4, 2, 8, 8), "square images"),
        (torch.zeros(4, 3, 8, 9), "square images"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "float images"),
        (torch.full((4, 3, 8, 8), torch.nan), "fake: 4 of 4 images"),
    ],
)
def test_images_that_cannot_be_scored_are_named(images, message):
    with pytest.raises(ValueError, match=message):
        check_images(images, "fake")
