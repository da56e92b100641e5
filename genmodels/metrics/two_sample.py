"""Whether two sets of points come from one distribution: a kernel's answer and a classifier's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALES = (0.25, 0.5, 1.0, 2.0)  # kernel widths, in units of the median distance
NUM_HIDDEN, NUM_STEPS, BATCH_SIZE = 128, 600, 256  # of the classifier and its training


def squared_mmd(real: Tensor, fake: Tensor) -> float:
    """Unbiased estimate of MMD^2 of points [N, Z] and [M, Z], so slightly negative where the two agree.

    The kernel is the mean of Gaussians as wide as a quarter to twice the median distance between the reals;
    Gretton et al. 2012, equation 3.
    """
    real, fake = real.double(), fake.double()
    median = torch.pdist(real).median()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = torch.cdist(a, b).square() / (2 * median**2)
        return torch.stack([torch.exp(-squares / scale**2) for scale in SCALES]).mean(0)

    def within(points: Tensor) -> Tensor:
        num = len(points)
        return (kernel(points, points).sum() - num) / (num * (num - 1))  # without the diagonal, which is 1

    return float(within(real) + within(fake) - 2 * kernel(real, fake).mean())


def classifier_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Accuracy on `test` of a network trained to tell the sets of `train` apart, [N, Z] each; 0.5: it cannot.

    The classifier two-sample test (Lopez-Paz & Oquab 2017). A function of the points alone.
    """
    points = torch.cat(train)
    targets = torch.cat([torch.ones(len(train[0]), 1), torch.zeros(len(train[1]), 1)]).to(points)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(0)
        hidden = nn.Sequential(nn.Linear(points.shape[1], NUM_HIDDEN), nn.ReLU(), nn.Linear(NUM_HIDDEN, NUM_HIDDEN))
        classifier = nn.Sequential(hidden, nn.ReLU(), nn.Linear(NUM_HIDDEN, 1)).to(points.device)
        optimizer = torch.optim.Adam(classifier.parameters(), 1e-3, fused=True)
        for _ in range(NUM_STEPS):
            rows = torch.randint(len(points), (BATCH_SIZE,))
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(classifier(points[rows]), targets[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        right = (classifier(test[0]) > 0).float().mean() + (classifier(test[1]) <= 0).float().mean()
    return float(right / 2)
