"""All scores of a set of samples under one protocol, and the scale to read them on.

Scores depend on the number of images, the feature network, the resize filter and the data. `Protocol` records
those; its digest goes with every score, and scores of unlike digests are never ranked together.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from genmodels.data.images import SMALLEST
from genmodels.metrics.features import FeatureNetwork, extract, frechet_distance, kernel_distance, precision_recall
from genmodels.metrics.images import FEWEST, check_images, quantize, random_subset
from genmodels.metrics.ms_ssim import ms_ssim_of_pairs
from genmodels.metrics.swd import sliced_wasserstein

VERSION = 2  # of the definitions in this package; goes up whenever a score's value changes


@dataclass(frozen=True)
class Protocol:
    """What a score depends on beside the samples."""

    num_images: int  # of each set, after the larger one was cut
    image_size: int  # pixels
    extractor_sha256: str  # empty without a feature network
    extractor_task: str  # "classes", "rotation" or "supplied"; empty without
    resize_filter: str  # on the way into the feature network; empty without
    data_digest: str  # of the real images' data set
    split: str  # that the real images come from
    version: int = VERSION
    domain: str | None = None  # that the real images come from, or "all"; None: the data set's only one

    @classmethod
    def of(
        cls,
        real: Tensor,
        fake: Tensor,
        extractor: FeatureNetwork | None,
        data_digest: str,
        split: str,
        domain: str | None = None,
    ) -> Protocol:
        """The protocol of `evaluate(real, fake, extractor)`."""
        return cls(
            num_images=min(len(real), len(fake)),
            image_size=real.shape[-1],
            extractor_sha256=extractor.sha256 if extractor else "",
            extractor_task=extractor.task if extractor else "",
            resize_filter=extractor.resize_filter if extractor else "",
            data_digest=data_digest,
            split=split,
            domain=domain,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; no domain where there is none, as before there were domains."""
        return {key: value for key, value in asdict(self).items() if key != "domain" or value}

    @property
    def digest(self) -> str:
        """Twelve hex digits of the sha256 over the canonical JSON: equal exactly when scores may be compared."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def evaluate(real: Tensor, fake: Tensor, extractor: FeatureNetwork | None = None, seed: int = 0) -> dict[str, float]:
    """Scores of fakes [M, C, S, S] against reals [N, C, S, S], both in [-1, 1]; the larger set is cut at random.

    Keys: `swd` (mean over levels), `swd_<size>` a level; from 4 px `ms_ssim` and `ms_ssim_real`; with an extractor
    also `fid`, `kid`, `precision` and `recall` over its features. Both sets are compared at 256 levels. ValueError
    for sets that differ in channels or size, hold fewer than 2 images (4 with an extractor) or values that are not
    finite.
    """
    check_images(real, "real")
    check_images(fake, "fake")
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(f"real images are {list(real.shape[1:])}, fake ones {list(fake.shape[1:])}: shapes must agree")
    num_images = min(len(real), len(fake))
    real, fake = (quantize(random_subset(images, num_images, seed)) for images in (real, fake))
    levels = sliced_wasserstein(real, fake, seed)
    scores = {"swd": sum(levels.values()) / len(levels)}
    scores |= {f"swd_{size}": distance for size, distance in levels.items()}
    if real.shape[-1] >= SMALLEST:
        scores |= {"ms_ssim": ms_ssim_of_pairs(fake, seed=seed), "ms_ssim_real": ms_ssim_of_pairs(real, seed=seed)}
    return scores if extractor is None else scores | feature_scores(extract(extractor, real), extract(extractor, fake))


def feature_scores(real: Tensor, fake: Tensor) -> dict[str, float]:
    """`fid`, `kid`, `precision` and `recall` of features [N, F] and [M, F]."""
    precision, recall = precision_recall(real, fake)
    return {
        "fid": frechet_distance(real, fake),
        "kid": kernel_distance(real, fake),
        "precision": precision,
        "recall": recall,
    }


def reference_scores(
    real: Tensor, extractor: FeatureNetwork | None = None, num_images: int | None = None, seed: int = 0
) -> dict[str, float]:
    """The scale beside each score: `evaluate` of two disjoint random halves of real data, plus their `num_images`.

    A half has N / 2 images, or `num_images` when that is fewer. Scores improve with the number of images (fid and swd
    most), so pass the number that the samples were scored with; where N is too small for it, the reference is
    that much too pessimistic, and the returned `num_images` says so. Halves of fewer than 4 images have no scores of
    the extractor.
    """
    check_images(real, "real")
    num_half = min(len(real) // 2, num_images or len(real))
    first, second = random_subset(real, 2 * num_half, seed).split(num_half)
    return evaluate(first, second, extractor if num_half >= FEWEST else None, seed) | {"num_images": float(num_half)}
