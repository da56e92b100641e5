"""Multi-scale structural similarity between images of one set: high values betray a collapsed generator.

Wang, Simoncelli & Bovik, "Multi-scale structural similarity for image quality assessment" (2003); over random
pairs, Odena et al., "Conditional Image Synthesis with Auxiliary Classifier GANs" (2017). Read it beside the value
of the real images: as diverse as those is the aim, not zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genmodels.metrics.images import check_images, quantize

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, finest first
WINDOW, SIGMA = 11, 1.5  # pixels, of the Gaussian window at full size
MIN_COARSEST = 7  # pixels
PAIRS_AT_ONCE = 256  # bounds the memory at 32 px; fewer of larger images


def ms_ssim_of_pairs(images: Tensor, num_pairs: int = 500, seed: int = 0) -> float:
    """Mean MS-SSIM of `num_pairs` random pairs of different images of one set [N, C, S, S] in [-1, 1].

    Images at 256 levels, taken to [0, 1]; channels are averaged; negative structure terms count as 0. Scales and
    window: `scales_and_window`. The pairs are a function of the seed alone.
    """
    check_images(images, "images")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(images), (num_pairs,), generator=generator)
    second = (first + torch.randint(1, len(images), (num_pairs,), generator=generator)) % len(images)
    at_once = max(1, PAIRS_AT_ONCE * 32**2 // images.shape[-1] ** 2)
    total = 0.0
    for left, right in zip(
        first.to(images.device).split(at_once), second.to(images.device).split(at_once), strict=True
    ):
        total += float(ms_ssim(images[left], images[right]).double().sum())
    return total / num_pairs


def ms_ssim(first: Tensor, second: Tensor) -> Tensor:
    """MS-SSIM [N] of each image with its partner, both [N, C, S, S] in [-1, 1].

    By torchmetrics, which averages over reflected borders too, where Wang et al. stop at the image's: the same to
    0.001 from 112 px on, not comparable with other code's values at 16 px and below.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    num_scales, window = scales_and_window(first.shape[-1])
    weights = SCALE_WEIGHTS[:num_scales]
    scores = multiscale_structural_similarity_index_measure(
        (quantize(first) + 1) / 2,
        (quantize(second) + 1) / 2,
        sigma=SIGMA * window / WINDOW,  # the Gaussian window's size follows from sigma ...
        kernel_size=1,  # ... and this one only from a size check that is not the true bound
        data_range=1.0,
        reduction="none",
        betas=tuple(weight / sum(weights) for weight in weights),
    )
    return scores.reshape(-1)


def scales_and_window(size: int) -> tuple[int, int]:
    """(number of scales, side of the Gaussian window) for images of side `size` >= 4.

    As many scales, five at most, as leave 7 px or more at the coarsest; the window is the largest odd number up to
    11 that fits there, with sigma in proportion (Odena's code shrinks it so). Weights: the paper's first ones,
    normalised to sum 1. 8 px: 1 scale, window 7; 16: 2, 7; 28 and 32: 3, 7; 64: 4, 7; 128: 5, 7; from 176: 5, 11.
    """
    if size < 4:
        raise ValueError(f"MS-SSIM needs images of 4 px or more, got {size}")
    num_scales = 1
    while num_scales < len(SCALE_WEIGHTS) and size >> num_scales >= MIN_COARSEST:
        num_scales += 1
    coarsest = size >> (num_scales - 1)
    return num_scales, min(WINDOW, coarsest - (coarsest + 1) % 2)
