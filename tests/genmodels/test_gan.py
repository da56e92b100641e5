"""The GAN on images and on points of the plane."""

import pytest
import torch
from torch import Tensor

from genmodels.data.fields import DataSpec
from genmodels.data.sources.ring import NUM_MODES, ring_centres, ring_points
from genmodels.model import Noise, ProofContext
from genmodels.models.gan import GAN, LEVEL, GANConfig, covered_modes

RING = DataSpec("ring", 2, 1, (1,), num_train=100, num_test=100)


def build(spec: DataSpec = RING, **settings) -> GAN:
    torch.manual_seed(0)
    model = GAN(GANConfig(**{"latent_dim": 4, "generator_hidden": 8, "discriminator_hidden": 32, **settings}), spec)
    model.name = "gan"
    return model


def points(num: int, seed: int = 0) -> Tensor:
    """Points as the data set serves them: on 256 levels, [num, 2, 1, 1]."""
    exact = ring_points(num, torch.Generator().manual_seed(seed))
    return (((exact + 1) * 127.5).round() / 127.5 - 1).view(num, 2, 1, 1)


@pytest.mark.parametrize(("channels", "size"), [(2, 1), (1, 28), (3, 15)])
def test_images_of_any_shape_are_vectors(channels, size):
    model = build(DataSpec("toy", channels, size, (size,), num_train=4, num_test=4))
    images = model.generate(model.latent(3, torch.Generator().manual_seed(0)), {}, None)
    assert images.shape == (3, channels, size, size) and images.abs().max() <= 1
    for phase in ("discriminator", "generator"):
        losses, _ = model.training_step({"image": images}, phase, None, Noise(0, 0, 0, torch.device("cpu")), {})
        assert sum(losses.values()).isfinite()


def test_points_are_spread_over_one_level_and_images_are_not():
    seen = []

    def step(model: GAN, images: Tensor) -> Tensor:
        model.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model.training_step({"image": images}, "discriminator", None, Noise(0, 0, 0, torch.device("cpu")), {})
        return (seen[-2] - images.flatten(1)).abs()

    spread = step(build(), points(500))
    assert 0.9 * LEVEL / 2 < spread.max() <= LEVEL / 2 + 1e-6
    assert step(build(DataSpec("toy", 1, 4, (4,), 4, 4)), torch.zeros(3, 1, 4, 4)).max() == 0


def test_the_value_is_minus_log_4_where_the_discriminator_knows_nothing():
    model = build()
    model.discriminator[-1].weight.data.zero_()
    model.discriminator[-1].bias.data.zero_()
    _, stats = model.training_step({"image": points(8)}, "discriminator", None, Noise(0, 0, 0, torch.device("cpu")), {})
    assert stats["value"].item() == pytest.approx(-2 * torch.tensor(2.0).log().item())


class RingGenerator(torch.nn.Module):
    """Uniform latents -> points of the first `num` modes, as the generator's output before its tanh."""

    def __init__(self, num: int):
        super().__init__()
        self.num, self.unused = num, torch.nn.Parameter(torch.zeros(1))

    def forward(self, latents: Tensor) -> Tensor:
        mode = ((latents[:, 0] + 1) / 2 * self.num).long().clamp(max=self.num - 1)
        normal = torch.special.ndtri((latents[:, 1:3] + 1).clamp(1e-4, 2 - 1e-4) / 2)
        return torch.atanh((ring_centres()[mode] + 0.05 * normal).clamp(-0.999, 0.999))


def proofs_of(num_modes: int) -> dict[str, tuple[float, float, bool]]:
    model = build().requires_grad_(False)
    model.generator = RingGenerator(num_modes)
    context = ProofContext({}, {}, False, points(8), lambda images: images, {}, [])
    return {proof.claim.split()[0]: (proof.measured, proof.baseline, proof.holds) for proof in model.proofs(context)}


def test_proofs_hold_for_a_perfect_generator_which_leaves_nothing_to_tell_apart():
    proofs = proofs_of(NUM_MODES)
    assert proofs["modes"] == (8, 8, True)
    assert proofs["JSD"][0] < 0.01 and proofs["JSD"][2]
    assert "E|D" not in proofs


def test_proofs_find_out_a_collapsed_generator_and_its_discriminator_is_near_optimal():
    proofs = proofs_of(2)
    assert proofs["modes"] == (2, 8, False)
    p, q = torch.tensor([0.125] * 8), torch.tensor([0.5] * 2 + [0.0] * 6)
    mean = (p + q) / 2
    expected = (torch.xlogy(p, p / mean) + torch.xlogy(q, q / mean)).sum().item() / 2
    assert proofs["JSD"][0] == pytest.approx(expected, abs=0.01)
    assert proofs["E|D"][2] and proofs["V(D,"][2]


def test_a_mode_counts_from_a_quarter_of_its_share():
    seven = ring_centres()[1:].repeat_interleave(100, 0)
    for num, covered in ((20, 7), (30, 8)):  # of 100
        assert covered_modes(torch.cat([seven, ring_centres()[:1].expand(num, 2)])) == covered
