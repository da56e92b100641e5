import pytest
import torch
import torch.nn.functional as F

from genmodels.convnets import reflected
from genmodels.data.fields import DataSpec
from genmodels.model import Noise, Progress, Stage
from genmodels.models.cyclegan import CycleGAN, CycleGANConfig, ImagePool, PatchDiscriminator
from genmodels.schedules import linear_decay

TINY = {"width": 4, "num_blocks": 1, "discriminator_width": 4, "layers": 1, "pool_size": 3}
START = Progress(0, 0, Stage("train", 100, 16, 4), 0.0)


def make(image_size: int = 16, **changes) -> CycleGAN:
    torch.manual_seed(0)
    spec = DataSpec("toy", 3, image_size, (image_size,), num_train=8, num_test=8, domains=("A", "B"))
    return CycleGAN(CycleGANConfig(**{**TINY, **changes}), spec)


def noise(step: int = 0) -> Noise:
    return Noise(0, step, 0, torch.device("cpu"))


def numbered(start: int, num: int) -> torch.Tensor:
    """Images of which every pixel is the image's number."""
    return torch.arange(start, start + num).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def numbers(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].int().tolist()


# --- pool ------------------------------------------------------------------------------------------------------------


def test_a_pool_shows_every_fake_until_it_is_full():
    pool = ImagePool(4, 1, 2)
    assert numbers(pool.exchange(numbered(1, 4), noise())) == [1, 2, 3, 4]
    assert numbers(pool.images) == [1, 2, 3, 4] and pool.count == 4


def test_a_full_pool_swaps_about_half_of_the_fakes_for_past_ones():
    pool = ImagePool(50, 1, 2)
    pool.exchange(numbered(0, 50), noise())
    shown = numbers(pool.exchange(numbered(1000, 400), noise(1)))
    fresh = [number for i, number in enumerate(shown) if number == 1000 + i]
    assert 160 < len(fresh) < 240 and pool.count == 50
    kept = set(numbers(pool.images))
    assert not kept & set(fresh)  # what was shown as new is not kept, so nothing is doubled
    assert len(kept) == 50 and len(set(shown)) == 400


def test_a_pool_carries_no_gradient_and_stays_apart_from_the_fakes():
    pool, fakes = ImagePool(4, 1, 2), numbered(1, 4).clone()
    pool.exchange(fakes, noise())
    fakes.zero_()
    assert numbers(pool.images) == [1, 2, 3, 4] and not pool.images.requires_grad


# --- networks and losses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 3])
def test_reflection_by_slices_is_reflection_padding(num):
    ours, torchs = (torch.arange(98.0).view(1, 2, 7, 7).requires_grad_() for _ in range(2))
    padded = reflected(ours, num), F.pad(torchs, [num] * 4, "reflect")
    assert torch.equal(*padded)
    for each in padded:
        (each * torch.arange(float(each.numel())).view_as(each)).sum().backward()
    torch.testing.assert_close(ours.grad, torchs.grad)


def test_a_patch_of_three_layers_is_70_pixels_wide():
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    network = PatchDiscriminator(3, 4, 3)
    for module in network.modules():  # normalisation mixes all places; what is measured is the convolutions'
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.forward = lambda maps: maps
    scores = network(image)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    columns = image.grad.abs().sum((0, 1, 2)).nonzero()
    assert columns.max() - columns.min() + 1 == 70


def test_the_paper_takes_six_blocks_at_128_pixels_and_nine_at_256():
    counts = []
    for size in (128, 256):
        names = [type(layer).__name__ for layer in make(size, num_blocks=None).to_b.layers]
        counts.append(names.count("ResidualBlock"))
    assert counts == [6, 9]


def test_discriminators_reuse_the_generators_fakes():
    model, scratch = make(pool_size=4), {}
    batch = {"image_A": torch.rand(4, 3, 16, 16), "image_B": torch.rand(4, 3, 16, 16)}
    losses = model.training_step(batch, "generators", START, noise(), scratch).losses
    assert set(losses) == {"adversarial_a", "adversarial_b", "cycle", "identity"}
    torch.testing.assert_close(scratch["fake_b"], model.to_b(batch["image_A"]).detach())
    model.training_step(batch, "discriminators", START, noise(), scratch)
    torch.testing.assert_close(model.pool_b.images, scratch["fake_b"])


def test_learning_rate_is_constant_then_falls_to_zero():
    assert [linear_decay(f, 0.5) for f in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]


# --- conditions ------------------------------------------------------------------------------------------------------


def test_direction_chooses_the_generator():
    model, images = make(), torch.rand(2, 3, 16, 16)
    there, back = (model.encode_condition(source=images, direction=way) for way in ("A2B", "B2A"))
    empty = model.latent(2, torch.Generator())
    assert empty.shape == (2, 0) and model.encode_condition(source=images).keys() == there.keys()
    torch.testing.assert_close(model.generate(empty, there, START), model.to_b(images))
    torch.testing.assert_close(model.generate(empty, back, START), model.to_a(images))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"source": 0, "direction": "AB"}, ["'AB'", "A2B, B2A"]),
        ({"direction": "A2B"}, ["needs source"]),
        ({"caption": "a cat"}, ["takes no caption", "source", "direction"]),
    ],
)
def test_a_wrong_condition_is_named_with_the_choices(given, words):
    with pytest.raises(ValueError) as error:
        make().encode_condition(**given)
    assert all(word in str(error.value) for word in words)


def test_too_many_layers_for_the_image_are_refused():
    with pytest.raises(ValueError, match="layers 3 need images of 24 pixels or more, not 16"):
        make(layers=3)
