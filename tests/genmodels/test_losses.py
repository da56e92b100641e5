"""Losses and penalties against closed forms; the bounds of the VAE; augmentation; image sizes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genmodels.augment import _cut_out, diff_augment
from genmodels.convnets import Decoder, Encoder, base_size
from genmodels.data.fields import DataSpec
from genmodels.losses import (
    discriminator_loss,
    dragan_penalty,
    gaussian_kl,
    generator_loss,
    gradient_norm,
    gradient_penalty,
    r1_penalty,
)
from genmodels.model import Noise
from genmodels.models.vae import VAE, VAEConfig

CPU = torch.device("cpu")
seeds = st.integers(0, 2**31)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(seed: int, num: int = 6, size: int = 8) -> Tensor:
    return torch.rand(num, 3, size, size, generator=draws(seed)) * 2 - 1


def linear_critic(slope: float, seed: int = 0):
    """A critic whose gradient has norm `slope` everywhere."""
    direction = torch.randn(3 * 8 * 8, generator=draws(seed))
    direction = slope * direction / direction.norm()
    return lambda x: x.flatten(1) @ direction


# --- adversarial losses ----------------------------------------------------------------------------------------------

LOG2 = math.log(2)


@pytest.mark.parametrize(
    "kind, real, fake, of_discriminator, of_generator",
    [
        ("non_saturating", 0.0, 0.0, 2 * LOG2, LOG2),
        ("minimax", 0.0, 0.0, 2 * LOG2, -LOG2),
        ("non_saturating", math.log(3), -math.log(3), 2 * math.log(4 / 3), math.log(4)),  # D = 3/4 and 1/4
        ("minimax", math.log(3), -math.log(3), 2 * math.log(4 / 3), math.log(3 / 4)),
        ("least_squares", 1.0, 0.0, 0.0, 1.0),
        ("least_squares", 0.0, 1.0, 2.0, 0.0),
        ("least_squares", 0.5, 0.5, 0.5, 0.25),
        ("hinge", 1.0, -1.0, 0.0, 1.0),
        ("hinge", 0.0, 0.0, 2.0, 0.0),
        ("hinge", 5.0, -7.0, 0.0, 7.0),
        ("hinge", -2.0, 3.0, 7.0, -3.0),
        ("wasserstein", 2.0, -1.0, -3.0, 1.0),
    ],
)
def test_adversarial_losses_at_known_logits(kind, real, fake, of_discriminator, of_generator):
    real, fake = torch.full((4, 1), real), torch.full((4, 1), fake)
    assert discriminator_loss(kind, real, fake).item() == pytest.approx(of_discriminator, abs=1e-6)
    assert generator_loss(kind, fake).item() == pytest.approx(of_generator, abs=1e-6)


@pytest.mark.parametrize("kind", ["non_saturating", "minimax", "least_squares", "hinge", "wasserstein"])
def test_descent_separates_the_logits_and_moves_the_fakes_towards_real(kind):
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    discriminator_loss(kind, real, fake).backward()
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all() if kind != "least_squares" else (fake.grad == 0).all()  # 0 is its target for fakes
    fake.grad = None
    generator_loss(kind, fake).backward()
    assert (fake.grad < 0).all()


def test_losses_are_finite_at_extreme_logits():
    for kind in ("non_saturating", "minimax", "hinge", "wasserstein"):
        extreme = torch.tensor([-1e4, 1e4])
        assert discriminator_loss(kind, extreme, extreme).isfinite() and generator_loss(kind, extreme).isfinite()


# --- penalties -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(slope=st.floats(0, 10), seed=seeds)
def test_penalties_of_a_linear_critic_have_closed_forms(slope, seed):
    critic, real, fake = linear_critic(slope, seed), images(seed), images(seed + 1)
    alpha = torch.rand(6, generator=draws(seed))
    torch.testing.assert_close(gradient_norm(critic, real), torch.full((6,), slope), rtol=1e-4, atol=1e-5)
    expected = (slope - 1) ** 2
    assert gradient_penalty(critic, real, fake, alpha).item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert dragan_penalty(critic, real, torch.rand_like(real)).item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert r1_penalty(critic, real).item() == pytest.approx(slope**2 / 2, rel=1e-3, abs=1e-5)


def test_the_penalty_is_zero_at_unit_slope_and_at_its_target():
    real, fake, alpha = images(0), images(1), torch.rand(6)
    assert gradient_penalty(linear_critic(1.0), real, fake, alpha).item() == pytest.approx(0, abs=1e-10)
    assert gradient_penalty(linear_critic(750.0), real, fake, alpha, 750).item() == pytest.approx(0, abs=1e-10)
    assert gradient_penalty(linear_critic(375.0), real, fake, alpha, 750).item() == pytest.approx(0.25, rel=1e-4)


def test_the_gradient_penalty_looks_between_the_two_images():
    seen = []

    def critic(x):
        seen.append(x.detach())
        return x.sum((1, 2, 3))

    real, fake = images(0, 3), images(1, 3)
    gradient_penalty(critic, real, fake, torch.tensor([0.0, 1.0, 0.25]))
    torch.testing.assert_close(seen[0], torch.stack([real[0], fake[1], 0.75 * real[2] + 0.25 * fake[2]]))


def test_dragan_looks_around_the_real_images_only():
    seen = []

    def critic(x):
        seen.append(x.detach())
        return x.sum((1, 2, 3))

    real = images(0)
    dragan_penalty(critic, real, torch.ones_like(real))
    torch.testing.assert_close(seen[0], real + 0.5 * real.std())


def test_penalties_train_the_critic():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Softplus(), nn.Linear(8, 1))
    real, fake = images(0), images(1)
    for penalty in (
        gradient_penalty(critic, real, fake, torch.rand(6)),
        r1_penalty(critic, real),
        dragan_penalty(critic, real, torch.rand_like(real)),
    ):
        critic.zero_grad()
        penalty.backward()
        assert critic[1].weight.grad.isfinite().all() and critic[1].weight.grad.abs().sum() > 0


# --- Kullback-Leibler ------------------------------------------------------------------------------------------------


def test_kl_is_zero_at_the_prior_and_only_there():
    zero = torch.zeros(5, 3)
    assert gaussian_kl(zero, zero).item() == 0
    for mean, logvar in ((zero + 0.1, zero), (zero, zero + 0.1), (zero, zero - 0.1)):
        assert gaussian_kl(mean, logvar).item() > 0


@settings(max_examples=25, deadline=None)
@given(mean=st.floats(-2, 2), logvar=st.floats(-2, 1.5))
def test_kl_agrees_with_monte_carlo(mean, logvar):
    """Against E_q[log q - log p] of 200,000 draws, within six standard errors."""
    std = math.exp(logvar / 2)
    q, p = torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    z = mean + std * torch.randn(200_000, generator=draws(0))
    terms = q.log_prob(z) - p.log_prob(z)
    closed = gaussian_kl(torch.full((2, 1), mean), torch.full((2, 1), logvar)).item()
    assert closed == pytest.approx(terms.mean().item(), abs=6 * terms.std().item() / 200_000**0.5 + 1e-5)


def test_kl_sums_latents_and_averages_images():
    mean, logvar = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert gaussian_kl(mean, logvar).item() == pytest.approx((1 + 4) / 2 / 2)


# --- the VAE's bounds ------------------------------------------------------------------------------------------------

SPEC = DataSpec("toy", 3, 8, (8,), num_train=8, num_test=0)


class LinearDecoder(nn.Module):
    """x = W z, so that p(x) is a Gaussian known in closed form."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = weight

    def forward(self, latents: Tensor) -> Tensor:
        return (latents @ self.weight.T).view(-1, 3, 8, 8)


def linear_vae(sigma: float = 0.5) -> tuple[VAE, Tensor, torch.distributions.MultivariateNormal]:
    """A VAE with a linear Gaussian decoder, images of it, and the exact p(x)."""
    torch.manual_seed(0)
    model = VAE(VAEConfig(latent_dim=2, width=2, sigma=sigma), SPEC)
    weight = 0.1 * torch.randn(192, 2, generator=draws(0))
    model.decoder.decoder = LinearDecoder(weight)
    model.decoder.mean = model.decoder.decoder.forward  # without the tanh
    covariance = weight @ weight.T + sigma**2 * torch.eye(192)
    exact = torch.distributions.MultivariateNormal(torch.zeros(192), covariance)
    x = torch.randn(4, 2, generator=draws(1)) @ weight.T + sigma * torch.randn(4, 192, generator=draws(2))
    return model, x.view(4, 3, 8, 8), exact


def true_posterior(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """p(z|x) of the linear VAE: mean [4, 2] and covariance [2, 2] (Bishop 2006, equation 2.116)."""
    weight, sigma = model.decoder.decoder.weight, model.decoder.log_sigma.exp()
    covariance = torch.linalg.inv(torch.eye(2) + weight.T @ weight / sigma**2)
    return x.flatten(1) @ weight @ covariance / sigma**2, covariance


def elbo(model: VAE, x: Tensor, mean: Tensor, logvar: Tensor, num: int) -> float:
    """What `training_step` maximises, averaged over draws."""
    values = [_elbo_once(model, x, mean, logvar, step) for step in range(num)]
    return sum(values) / num


def _elbo_once(model: VAE, x: Tensor, mean: Tensor, logvar: Tensor, step: int) -> float:
    model.posterior = lambda _: (mean, logvar)
    losses, stats = model.training_step({"image": x}, "elbo", None, Noise(0, step, 0, CPU), {})
    assert sum(losses.values()).item() == pytest.approx(-stats["elbo"].item(), rel=1e-5)
    return stats["elbo"].item()


def test_the_bounds_tighten_towards_the_exact_evidence():
    """ELBO < IW bound of 5 < of 500 ~ log p(x) of the linear Gaussian model, for a posterior that is too wide."""
    model, x, exact = linear_vae()
    evidence = exact.log_prob(x.flatten(1)).mean().item()
    mean, covariance = true_posterior(model, x)
    logvar = (covariance.diagonal().log() + 0.7).expand_as(mean)

    def bound(k: int) -> float:
        repeats = 4000 // k
        parts = [torch.randn(4, k, 2, generator=draws(i)) for i in range(repeats)]
        return sum(model.importance_weighted_bound(x, mean, logvar, part).mean().item() for part in parts) / repeats

    elbo_value, five, many = elbo(model, x, mean, logvar, 1000), bound(5), bound(500)
    assert elbo_value < five - 0.02 < many - 0.02
    assert bound(1) == pytest.approx(elbo_value, abs=0.1)  # one sample: the ELBO, the KL term by chance
    assert many == pytest.approx(evidence, abs=0.01)
    assert many < evidence + 0.01


def test_the_elbo_is_the_evidence_at_the_true_posterior():
    """For a diagonal posterior, which a decoder with orthogonal columns has."""
    model, x, _ = linear_vae()
    weight = torch.linalg.qr(model.decoder.decoder.weight)[0]
    model.decoder.decoder.weight = weight
    exact = torch.distributions.MultivariateNormal(torch.zeros(192), weight @ weight.T + 0.25 * torch.eye(192))
    mean, covariance = true_posterior(model, x)
    assert covariance[0, 1].abs() < 1e-5
    logvar = covariance.diagonal().log().expand_as(mean)
    evidence = exact.log_prob(x.flatten(1)).mean().item()
    assert elbo(model, x, mean, logvar, 3000) == pytest.approx(evidence, abs=0.1)
    weighted = model.importance_weighted_bound(x, mean, logvar, torch.randn(4, 3, 2))  # every draw has weight p(x)
    torch.testing.assert_close(weighted, exact.log_prob(x.flatten(1)), rtol=1e-4, atol=1e-2)


def test_the_gaussian_likelihood_is_a_normal_density():
    model, x, _ = linear_vae(0.3)
    z = torch.randn(4, 2)
    normal = torch.distributions.Normal(model.decoder.mean(z), 0.3)
    torch.testing.assert_close(model.decoder.log_prob(x, z), normal.log_prob(x).flatten(1).sum(1), rtol=1e-4, atol=1e-3)


def test_the_bernoulli_likelihood_is_a_probability():
    model = VAE(VAEConfig(latent_dim=2, width=2, likelihood="bernoulli"), SPEC).eval()
    z, x = torch.randn(4, 2), (images(0, 4) > 0).float() * 2 - 1
    on = (model.decoder.mean(z) + 1) / 2
    expected = torch.where(x > 0, on, 1 - on).log().flatten(1).sum(1)
    torch.testing.assert_close(model.decoder.log_prob(x, z), expected, rtol=1e-4, atol=1e-3)


def test_beta_weighs_the_kl_term_alone():
    def losses(beta: float) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = VAE(VAEConfig(latent_dim=2, width=2, beta=beta), SPEC)
        return model.training_step({"image": images(0)}, "elbo", None, Noise(0, 0, 0, CPU), {}).losses

    one, four = losses(1.0), losses(4.0)
    torch.testing.assert_close(four["kl"], 4 * one["kl"])
    torch.testing.assert_close(four["reconstruction"], one["reconstruction"])


# --- augmentation ----------------------------------------------------------------------------------------------------


def augment(x: Tensor, step: int = 0, **rank) -> Tensor:
    return diff_augment(x, Noise(0, step, 0, CPU, **rank))


@pytest.mark.parametrize("size", [4, 8, 28, 33])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_keeps_shape_and_stays_finite(size, channels):
    x = torch.rand(5, channels, size, size) * 2 - 1
    assert augment(x).shape == x.shape and augment(x).isfinite().all()


def test_augmentation_is_a_function_of_its_noise_on_any_number_of_ranks():
    x = images(0, 8)
    whole = augment(x)
    assert torch.equal(augment(x), whole)
    assert not torch.equal(augment(x, step=1), whole)
    halves = [augment(part, rank=i, world_size=2) for i, part in enumerate(x.split(4))]
    torch.testing.assert_close(torch.cat(halves), whole)


def test_augmentation_passes_gradients_but_none_from_the_cut_out():
    x = images(0, 64, 16).requires_grad_()
    y = augment(x)
    y.square().sum().backward()
    assert x.grad.isfinite().all() and (x.grad.abs().flatten(1).sum(1) > 0).all()
    removed = (y.detach() == 0).all(1).float().mean().item()
    assert 0.1 < removed < 0.4  # a hole of a quarter, which the border cuts; and what was shifted out


def test_augmentation_moves_by_at_most_an_eighth():
    x = torch.zeros(256, 1, 16, 16)
    x[:, :, 8, 8] = 1e4  # far brighter than all else that happens
    y = augment(x).abs()
    places = {divmod(i, 16) for i in y.flatten(1).argmax(1)[y.flatten(1).amax(1) > 3e3].tolist()}
    assert places == {(8 + i, 8 + j) for i in range(-2, 3) for j in range(-2, 3)}


# --- image sizes -----------------------------------------------------------------------------------------------------


@given(st.integers(4, 7), st.integers(1, 8))
def test_sizes_that_halve_down_to_the_smallest_map_are_taken_apart(side, doublings):
    assert base_size(side * 2**doublings) == (side, doublings)


@given(st.integers(1, 1100))
def test_every_other_size_is_refused(size):
    valid = {side * 2**k for side in range(4, 8) for k in range(1, 9)}
    if size in valid:
        side, doublings = base_size(size)
        assert side * 2**doublings == size
    else:
        with pytest.raises(ValueError, match=f"image_size {size} does not halve"):
            base_size(size)


@pytest.mark.parametrize("size", [8, 12, 28, 32])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_encoder_and_decoder_fit_every_size(size, norm):
    x = Decoder(5, 3, size, 2, norm)(torch.randn(2, 5))
    assert x.shape == (2, 3, size, size)
    assert Encoder(3, size, 2, 7, norm)(x).shape == (2, 7)


@pytest.mark.parametrize("size", [7, 8])
def test_the_cut_out_favours_no_side(size):
    kept = _cut_out(torch.ones(20_000, 1, size, size), Noise(0, 0, 0, CPU), size // 2, size // 2).mean((0, 1))
    assert torch.allclose(kept, kept.flip(0), atol=0.015) and torch.allclose(kept, kept.flip(1), atol=0.015)
