"""The adversarial autoencoder's priors, its labels, and the measures of its proofs."""

import math

import pytest
import torch
from torch import Tensor

from genmodels.data.fields import DataSpec
from genmodels.metrics.two_sample import classifier_accuracy, squared_mmd
from genmodels.model import Noise, ProofContext
from genmodels.models.aae import AAE, AAEConfig
from genmodels.priors import PRIORS, mixture

CPU = torch.device("cpu")
CLASSES = tuple("abcdefghij")
SPEC = DataSpec("toy", 3, 8, (8,), num_train=8, num_test=8, classes=CLASSES)


def draws(seed: int, num: int = 4000, dim: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, generator=generator), torch.rand(num, generator=generator)


def build(**settings) -> AAE:
    torch.manual_seed(0)
    model = AAE(AAEConfig(**{"latent_dim": 2, "width": 4, "hidden": 16, **settings}), SPEC)
    model.name = "aae"
    return model.eval()


# --- priors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("dim", [2, 5])
def test_priors_are_functions_of_their_draws_and_stay_bounded(name, dim):
    latents = PRIORS[name](*draws(0, dim=dim))
    assert latents.shape == (4000, dim) and latents.abs().max() < 6
    assert torch.equal(latents, PRIORS[name](*draws(0, dim=dim)))
    assert latents.mean(0).abs().max() < 0.4  # the roll is the least centred


def test_the_uniform_prior_is_uniform():
    latents = PRIORS["uniform"](*draws(0))[:, 0]
    expected = torch.linspace(-1, 1, len(latents))
    assert (latents.sort().values - expected).abs().max() < 0.06


@pytest.mark.parametrize("num_modes", [10, 3])
def test_the_mixture_has_petals_that_point_outwards(num_modes):
    normal, place = draws(0)
    latents = mixture(normal, place, num_modes)
    mode = (place * num_modes).long()
    for k in range(num_modes):
        angle = torch.tensor(2 * math.pi * k / num_modes)
        turned = latents[mode == k] @ torch.stack(
            [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
        )
        assert turned.mean(0).tolist() == pytest.approx([1.4, 0], abs=0.1)
        assert turned.std(0).tolist() == pytest.approx([0.5, 0.1], rel=0.2)


def test_the_swiss_roll_is_even_along_its_length():
    """Half of the draws lie beyond the angle that half of the length has: its square is uniform."""
    radius = PRIORS["swiss_roll"](*draws(0)).norm(dim=1)
    assert ((radius / 2) > math.sqrt(0.5)).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_a_class_has_its_own_mode():
    normal, place = draws(0)
    model = build(use_labels=True, prior="mixture")
    labels = torch.arange(4000) % len(CLASSES)
    expected = mixture(normal, (labels + 0.5) / len(CLASSES), len(CLASSES))
    assert torch.equal(model.prior(normal, place, {"label": labels}), expected)


def test_labels_need_a_prior_with_places():
    with pytest.raises(ValueError, match="prior 'uniform' has no region for each class; choices: mixture, swiss_roll"):
        AAEConfig(prior="uniform", use_labels=True)


def test_flat_priors_need_a_plane():
    with pytest.raises(ValueError, match="latent_dim must be at least 2"):
        AAEConfig(prior="swiss_roll", latent_dim=1)


# --- measures --------------------------------------------------------------------------------------------------------


def test_mmd_is_zero_for_equals_and_grows_with_the_distance():
    a, b = draws(0, 800)[0], draws(1, 800)[0]
    same, near, far = squared_mmd(a, b), squared_mmd(a, b + 0.5), squared_mmd(a, b + 2)
    assert abs(same) < 0.003 < near < far


def test_a_fresh_classifier_is_at_a_loss_between_equals_alone():
    points = [draws(seed, 1000)[0] for seed in range(4)]
    assert classifier_accuracy((points[0], points[1]), (points[2], points[3])) == pytest.approx(0.5, abs=0.05)
    assert classifier_accuracy((points[0], points[1] + 2), (points[2], points[3] + 2)) > 0.8


# --- phases and conditions -------------------------------------------------------------------------------------------


def test_phases_are_three_with_their_own_losses():
    """No mixed step: each loss reaches its own networks, unweighted."""
    model, scratch = build(), {}
    assert [(phase.name, phase.nets) for phase in model.phases] == [
        ("reconstruction", ("encoder", "decoder")),
        ("discriminator", ("discriminator",)),
        ("regularisation", ("encoder",)),
    ]
    for i, phase in enumerate(model.phases):
        losses, _ = model.training_step({"image": images(4)}, phase.name, None, Noise(0, 0, i, CPU), scratch)
        assert len(losses) == 1
    assert not scratch["codes"].requires_grad


def images(num: int) -> Tensor:
    return torch.rand(num, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_with_labels_the_discriminator_sees_them_and_a_class_can_be_sampled():
    model = build(use_labels=True, prior="mixture")
    assert model.batch_keys == ("image", "label")
    assert model.discriminator[0].in_features == 2 + len(CLASSES)
    latent = model.latent(4, torch.Generator().manual_seed(0))
    a, b = (
        model.generate(latent, {k: v.expand(4) for k, v in model.encode_condition(label=c).items()}, None) for c in "ab"
    )
    assert not torch.allclose(a, b)


def test_conditions_that_cannot_be_met_are_refused_in_one_line():
    for settings, given, words in (
        ({}, {"label": "a"}, ("label", "source")),
        ({"use_labels": True, "prior": "swiss_roll"}, {"label": "z"}, ("'z'", "a, b, c")),
        ({}, {"source": torch.zeros(1, 3, 9, 9)}, ("[3, 9, 9]", "[3, 8, 8]")),
    ):
        with pytest.raises(ValueError) as error:
            build(**settings).encode_condition(**given)
        assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_a_source_is_reconstructed_whatever_the_latents():
    model, source = build(), images(3)
    cond = model.encode_condition(source=source)
    shown = [model.generate(model.latent(3, torch.Generator().manual_seed(s)), cond, None) for s in (0, 1)]
    assert torch.equal(*shown) and torch.equal(shown[0], model.reconstruct(source))
    pair = model.present(shown[0], cond)
    assert pair.shape == (3, 3, 8, 16) and torch.equal(pair[..., :8], source)


@pytest.mark.parametrize("use_labels", [False, True])
def test_proofs_are_a_function_of_the_data_and_pictures_show_codes_beside_the_prior(use_labels, monkeypatch):
    monkeypatch.setattr("genmodels.models.aae.PROOF_STEPS", 3)
    monkeypatch.setattr("genmodels.metrics.two_sample.NUM_STEPS", 20)
    model = build(prior="mixture", use_labels=use_labels)
    batch = {"image": images(40), "label": torch.arange(40) % 10}
    context = ProofContext(batch, batch, False, batch["image"], lambda x: x, {}, [])
    proofs = model.proofs(context)
    assert len(proofs) == 2 and proofs == model.proofs(context)
    pictures = model.pictures(context)
    assert pictures["codes_and_prior"].shape == (1, 2, 3, 256, 256)
    assert pictures["reconstructions"].shape == (8, 4, 3, 8, 16)
