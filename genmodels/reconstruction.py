"""What models that encode and decode images share: reconstructions, as samples under the condition "image"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genmodels.model import Batch, GenerativeModel, Progress, ProofContext
from genmodels.text import check_given


class ReconstructingModel(GenerativeModel):
    """Samples from its prior, or, given images, shows what its code keeps of them."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """Decoded codes of images [N, C, S, S], of the same shape."""
        raise NotImplementedError

    def decode(self, latent: Tensor, cond: Batch) -> Tensor:
        """Images [N, C, S, S] of latents [N, ...]."""
        raise NotImplementedError

    def generate(self, latent: Tensor, cond: Batch, progress: Progress) -> Tensor:
        """Decoded latents; under {"image": [N, C, S, S]} the reconstructions of those images."""
        return self.reconstruct(cond["image"]) if "image" in cond else self.decode(latent, cond)

    def controls(self) -> dict[str, tuple[str, ...]]:
        """Images to reconstruct."""
        return {"source": ()}

    def encode_condition(self, **given: Any) -> Batch:
        """source: images [N, C, S, S] in [-1, 1] to reconstruct."""
        check_given(self.name, given, required=("source",))
        source, size = given["source"], self.data.image_size
        if source.shape[1:] != (self.data.channels, size, size):
            expected = [self.data.channels, size, size]
            raise ValueError(f"source: images are {list(source.shape[1:])}, {self.name} takes {expected}")
        return {"image": source}

    def present(self, images: Tensor, cond: Batch) -> Tensor:
        """Each source beside its reconstruction, [N, C, S, 2 S]."""
        return torch.cat([cond["image"].to(images), images], 3) if "image" in cond else images

    @torch.no_grad()
    def pictures(self, context: ProofContext) -> dict[str, Tensor]:
        """Held-out images, each beside its reconstruction."""
        images = context.test["image"][:32]
        pairs = self.present(self.reconstruct(images), {"image": images})
        columns = next(n for n in (4, 2, 1) if len(pairs) % n == 0)
        return {"reconstructions": pairs.unflatten(0, (-1, columns))}
