"""What theory says of the models' objectives, checked by running them."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from genmodels.data.sources.ring import NUM_MODES, RADIUS, SIGMA, ring_centres, ring_log_density, ring_points
from genmodels.losses import discriminator_loss, gaussian_kl, generator_loss
from genmodels.models.gan import NUM_BINS, bin_centres, covered_modes, histogram, js_divergence, mlp, probability


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the evidence lower bound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_elbo_plus_kl_to_the_posterior_is_the_evidence(seed):
    """x = W z + sigma e: every term in closed form, for any q (Kingma & Welling 2014, equation 1)."""
    generator = draws(seed)
    weight, x = torch.randn(6, 2, generator=generator).double(), torch.randn(6, generator=generator).double()
    mean, logvar = torch.randn(2, 2, generator=generator).double()
    sigma, identity = 0.7, torch.eye(2).double()
    evidence = MultivariateNormal(
        torch.zeros(6).double(), weight @ weight.T + sigma**2 * torch.eye(6).double()
    ).log_prob(x)
    covariance = torch.linalg.inv(identity + weight.T @ weight / sigma**2)  # Bishop 2006, equation 2.117
    posterior = MultivariateNormal(covariance @ weight.T @ x / sigma**2, covariance)
    q = MultivariateNormal(mean, torch.diag(logvar.exp()))
    residual = (x - weight @ mean).square().sum() + (weight.square() @ logvar.exp()).sum()  # E_q |x - W z|^2
    reconstruction = -0.5 * residual / sigma**2 - 6 * math.log(sigma * math.sqrt(2 * math.pi))
    elbo = reconstruction - gaussian_kl(mean[None], logvar[None])
    assert (elbo + kl_divergence(q, posterior)).item() == pytest.approx(evidence.item(), abs=1e-9)
    assert elbo < evidence


def test_the_closed_kl_agrees_with_monte_carlo():
    mean, logvar = torch.tensor([[0.5, -1.0, 0.0]]), torch.tensor([[0.3, -1.0, 0.0]])
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    z = mean + (0.5 * logvar).exp() * torch.randn(200_000, 3, generator=draws(0))
    terms = (q.log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z)).sum(1)
    standard_error = terms.std().item() / len(z) ** 0.5
    assert gaussian_kl(mean, logvar).item() == pytest.approx(terms.mean().item(), abs=5 * standard_error)


# --- the ring --------------------------------------------------------------------------------------------------------


def test_the_rings_density_is_that_of_its_points():
    points = ring_points(200_000, draws(0))
    density = ring_log_density(bin_centres()).exp()
    assert density.sum().item() * (2 / NUM_BINS) ** 2 == pytest.approx(1, abs=1e-3)
    assert js_divergence(probability(ring_log_density(bin_centres())), histogram(points)).item() < 2e-3
    assert points.var(0).tolist() == pytest.approx([RADIUS**2 / 2 + SIGMA**2] * 2, rel=0.02)


@pytest.mark.parametrize("num", range(1, NUM_MODES + 1))
def test_covered_modes_are_those_that_the_points_lie_in(num):
    points = ring_points(20_000, draws(0))
    mode = torch.cdist(points, ring_centres()).argmin(1)
    assert covered_modes(points[mode < num]) == num


def test_the_divergence_is_zero_for_equals_and_log_2_at_most():
    p = torch.softmax(torch.randn(50, generator=draws(0)), 0)
    apart = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert js_divergence(p, p).item() == pytest.approx(0, abs=1e-6)
    assert js_divergence(*apart).item() == pytest.approx(math.log(2), rel=1e-6)


# --- the optimal discriminator ---------------------------------------------------------------------------------------

SPREAD = 0.5  # of the fixed generator N(0, SPREAD^2 I), about as wide as the ring


def log_q(points: Tensor) -> Tensor:
    return -0.5 * points.square().sum(1) / SPREAD**2 - math.log(2 * math.pi * SPREAD**2)


@pytest.fixture(scope="module")
def discriminator() -> torch.nn.Module:
    """Trained between the ring and a generator of known density, by the loss that the GAN uses."""
    torch.manual_seed(0)
    network, generator = mlp(2, 128, 1, 2, torch.nn.ReLU()), draws(0)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1200)
    for _ in range(1200):
        real, fake = ring_points(512, generator), SPREAD * torch.randn(512, 2, generator=generator)
        optimizer.zero_grad()
        discriminator_loss("minimax", network(real), network(fake)).backward()
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False)


def test_a_trained_discriminator_approaches_p_over_p_plus_q(discriminator):
    """Goodfellow et al. 2014, proposition 1: on points of both, on average within 0.05."""
    points = torch.cat([ring_points(5000, draws(1)), SPREAD * torch.randn(5000, 2, generator=draws(2))])
    optimal = torch.sigmoid(ring_log_density(points) - log_q(points))
    error = (torch.sigmoid(discriminator(points).squeeze(1)) - optimal).abs().mean().item()
    assert error < 0.05 < 0.2 < (optimal - 0.5).abs().mean().item()


def test_its_value_approaches_2_jsd_minus_log_4_from_below(discriminator):
    """Goodfellow et al. 2014, theorem 1; the divergence integrated on a grid, the value on fresh points."""
    axis = torch.linspace(-3, 3, 601).double()
    grid, area = torch.cartesian_prod(axis, axis), (axis[1] - axis[0]).item() ** 2
    p, q = ring_log_density(grid).exp() * area, log_q(grid).exp() * area
    assert p.sum().item() == pytest.approx(1, abs=1e-4) and q.sum().item() == pytest.approx(1, abs=1e-4)
    bound = 2 * js_divergence(p, q).item() - math.log(4)
    real, fake = ring_points(50_000, draws(1)), SPREAD * torch.randn(50_000, 2, generator=draws(2))
    value = -discriminator_loss("minimax", discriminator(real), discriminator(fake)).item()
    assert bound - 0.1 < value < bound + 0.01
    assert bound > -math.log(4) + 0.5  # so the bound says something


def test_both_generator_losses_agree_in_direction_and_differ_in_strength_where_fakes_are_found_out():
    """Gradients towards 'real' at D(G(z)) = sigmoid(l): 1 - D for the non-saturating loss, D for minimax."""
    logits = torch.tensor([-6.0, 0.0], requires_grad=True)
    gradients = {}
    for kind in ("non_saturating", "minimax"):
        (gradients[kind],) = torch.autograd.grad(2 * generator_loss(kind, logits), logits)
    torch.testing.assert_close(gradients["non_saturating"], -(1 - torch.sigmoid(logits)))
    torch.testing.assert_close(gradients["minimax"], -torch.sigmoid(logits))
