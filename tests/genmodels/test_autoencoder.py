"""The Gaussian of the autoencoder's codes, and the baseline of its proof."""

import pytest
import torch
from torch import Tensor

from genmodels.data.fields import DataSpec
from genmodels.model import Noise
from genmodels.models.autoencoder import Autoencoder, AutoencoderConfig, CodeEncoder, pca_mse

SPEC = DataSpec("toy", 3, 8, (8,), num_train=8, num_test=8)


def normal(num: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed))


def encoder_of(mean: Tensor, covariance: Tensor) -> CodeEncoder:
    encoder = CodeEncoder(3, 8, 2, len(mean))
    encoder.first.copy_(mean)
    encoder.second.copy_(covariance + torch.outer(mean, mean))
    return encoder.eval()


def test_draws_have_the_codes_mean_and_covariance_longest_axis_first():
    root = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.3, 0.0], [0.1, 0.2, 0.05]])
    mean, covariance = torch.tensor([3.0, -2.0, 0.5]), root @ root.T
    encoder = encoder_of(mean, covariance)
    codes = encoder.draw(normal(200_000, 3))
    torch.testing.assert_close(codes.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(codes.T.cov(), covariance, atol=0.02, rtol=0)
    reach = (encoder.draw(torch.eye(3)) - encoder.draw(torch.zeros(3, 3))).norm(dim=1)
    assert reach[0] > reach[1] > reach[2]


def test_draws_stay_finite_when_moments_are_degenerate():
    """A collapsed code, and rounding that leaves E[zz'] - mm' slightly negative."""
    for covariance in (torch.zeros(3, 3), -1e-4 * torch.eye(3)):
        codes = encoder_of(torch.ones(3), covariance).draw(normal(10, 3))
        torch.testing.assert_close(codes, torch.ones(10, 3), atol=1e-5, rtol=0)


def test_moments_move_towards_the_codes_in_training_only():
    torch.manual_seed(0)
    encoder, images = CodeEncoder(3, 8, 2, 3), normal(64, 192).view(64, 3, 8, 8)
    for _ in range(1000):
        codes = encoder(images)
    torch.testing.assert_close(encoder.first, codes.mean(0), atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(encoder.second, codes.T @ codes / 64, atol=1e-3, rtol=1e-2)
    before = encoder.second.clone()
    encoder.eval()(images + 1)
    assert torch.equal(encoder.second, before)


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_images_are_in_range_and_the_loss_is_least_at_the_images(loss):
    model = Autoencoder(AutoencoderConfig(latent_dim=2, width=2, loss=loss), SPEC)
    images = normal(4, 192).view(4, 3, 8, 8).clamp(-1, 1)

    def loss_of(target: Tensor) -> float:
        model.decoder.forward = lambda _: torch.atanh(target) if loss == "mse" else torch.logit((target + 1) / 2)
        noise = Noise(0, 0, 0, torch.device("cpu"))
        return sum(model.training_step({"image": images}, "reconstruction", None, noise, {}).losses.values()).item()

    near, far = 0.999 * images, 0.8 * images
    assert loss_of(near) < loss_of(far)
    torch.testing.assert_close(model.reconstruct(images), far, atol=1e-5, rtol=0)


def test_pca_is_exact_at_the_rank_of_the_data_and_no_better_below():
    basis = 0.1 * normal(3, 192, seed=1)
    train, test = ((normal(n, 3, seed=n) @ basis + 0.1).view(n, 3, 8, 8).clamp(-1, 1) for n in (64, 32))
    errors = [pca_mse(train, test, num) for num in (1, 2, 3)]
    assert errors[0] > errors[1] > 1e-3 > 1e-6 > errors[2]
