"""A feature network that the user brings as a TorchScript file: with Inception's, FID is the one of the papers."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from genmodels.files import sha256_file


class SuppliedNetwork(nn.Module):
    """The network in a file: images uint8 [N, 3, S, S] -> features [N, F], resized by itself.

    That is the form of the Inception and VGG files that StyleGAN3's metrics use (Karras et al. 2021), whose argument
    `return_features` is set. A TorchScript file holds code, which runs: bring only one that you trust.
    """

    task = "supplied"
    resize_filter = "the network's own"

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.sha256 = path, sha256_file(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch would rather have torch.export's files, which nobody has yet
                self.network = torch.jit.load(path, map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} is no TorchScript file: {str(error).splitlines()[0]}") from None
        arguments = [argument.name for argument in self.network.forward.schema.arguments]
        self.options = {"return_features": True} if "return_features" in arguments else {}

    def forward(self, images: Tensor) -> Tensor:
        """Features [N, F], fp32, of images [N, 1 or 3, S, S] in [-1, 1]; ValueError where the file gives no such."""
        levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        features = self.network(levels.expand(-1, 3, -1, -1), **self.options)
        if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != len(images):
            shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"{self.path} gave {shape} for {len(images)} images, not a row of features each")
        return features.float()
