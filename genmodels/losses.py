"""Losses that several models share. Logits and penalties are scalar means over the batch unless said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.convolution import no_weight_gradients

BoundedLoss = Literal["non_saturating", "minimax", "least_squares", "hinge"]  # the discriminator's, from below
AdversarialLoss = Literal[BoundedLoss, "wasserstein"]
Critic = Callable[[Tensor], Tensor]


def discriminator_loss(kind: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on logits of real and of generated images, any shape.

    Goodfellow et al. 2014 (minimax, non-saturating), Mao et al. 2017 (least squares),
    Lim & Ye 2017 (hinge), Arjovsky et al. 2017 (Wasserstein).
    """
    return real_loss(kind, real).mean() + fake_loss(kind, fake).mean()


def real_loss(kind: AdversarialLoss, logits: Tensor) -> Tensor:
    """The discriminator's loss on each of its logits of real images."""
    if kind in ("non_saturating", "minimax"):
        return F.softplus(-logits)  # -log D(x)
    if kind == "least_squares":
        return (logits - 1) ** 2
    return F.relu(1 - logits) if kind == "hinge" else -logits


def fake_loss(kind: AdversarialLoss, logits: Tensor) -> Tensor:
    """The discriminator's loss on each of its logits of images that are to be refused."""
    if kind in ("non_saturating", "minimax"):
        return F.softplus(logits)  # -log(1 - D(G(z)))
    if kind == "least_squares":
        return logits**2
    return F.relu(1 + logits) if kind == "hinge" else logits


def generator_loss(kind: AdversarialLoss, fake: Tensor) -> Tensor:
    """The generator's loss on the discriminator's logits of generated images, any shape."""
    if kind == "non_saturating":
        return F.softplus(-fake).mean()  # -log D(G(z))
    if kind == "minimax":
        return -F.softplus(fake).mean()  # log(1 - D(G(z)))
    if kind == "least_squares":
        return ((fake - 1) ** 2).mean()
    return -fake.mean()


def gradient_norm(critic: Critic, images: Tensor) -> Tensor:
    """Norm of the critic's gradient at each image, [B], in fp32 and differentiable."""
    images = images.detach().requires_grad_()
    with no_weight_gradients():
        (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    return gradient.float().flatten(1).norm(dim=1)


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, alpha: Tensor, target: float = 1.0) -> Tensor:
    """E[(|grad D| - target)^2] / target^2 between real and generated images [B, C, H, W].

    alpha: uniform draws [B]. Gulrajani et al. 2017, equation 3; target 750 is Karras et al. 2018, CIFAR-10.
    The critic must treat images one by one (no batch normalisation).
    """
    between = torch.lerp(real, fake.to(real.dtype), alpha.view(-1, 1, 1, 1).to(real.dtype))
    return ((gradient_norm(critic, between) - target) ** 2).mean() / target**2


def r1_penalty(critic: Critic, real: Tensor) -> Tensor:
    """E[|grad D|^2] / 2 on real images [B, C, H, W] (Mescheder et al. 2018, equation 9)."""
    return 0.5 * gradient_norm(critic, real).square().mean()


def dragan_penalty(critic: Critic, real: Tensor, draws: Tensor) -> Tensor:
    """E[(|grad D| - 1)^2] around real images: x + 0.5 std(x) u, with uniform draws u like x (Kodali et al. 2017)."""
    return ((gradient_norm(critic, real + 0.5 * real.std() * draws) - 1) ** 2).mean()


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, summed over latents [B, Z], mean over the batch.

    Kingma, "Variational Inference and Deep Learning" (2017), closed form for two Gaussians.
    """
    return 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(1).mean()


def contrastive_loss(images: Tensor, texts: Tensor, alike: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each image's text in the batch and each text's image, halved; embeddings [B, E].

    alike: bool [B, B], pairs (i, j) that match too and so count neither way. The symmetric form of a joint
    embedding's loss (Reed et al. 2016, CVPR, equation 4), with a softmax in place of the hinge (Radford et al. 2021).
    """
    scores = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T / temperature
    right = torch.arange(len(scores), device=scores.device)
    scores = scores.float().masked_fill(alike & (right[:, None] != right), -torch.inf)
    return 0.5 * (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right))
