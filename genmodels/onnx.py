"""A sampler as one ONNX file: latents and conditions in, images out, for programs without torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from genmodels.export import CHUNK, Sampler

OUTPUT = "images"


class _Generator(nn.Module):
    """`generate` as a module of tensors alone."""

    def __init__(self, sampler: Sampler, keys: list[str]):
        super().__init__()
        self.model, self.progress, self.keys = sampler.model, sampler.progress, keys

    def forward(self, latent: Tensor, *cond: Tensor) -> Tensor:
        """Images [num, C, H, W] in [-1, 1]."""
        return self.model.generate(latent, dict(zip(self.keys, cond, strict=True)), self.progress)


def export_onnx(sampler: Sampler, path: Path) -> None:
    """Writes the sampler, as it works under conditions like those it was exported with.

    Inputs, for any num: `latent` [num, ...], empty of the models that have none, and a tensor [num, ...] a condition,
    as `Sampler.inputs` makes them; output `images` [num, C, H, W] in [-1, 1]. Needs the extra `onnx`.
    """
    latent, cond = sampler.inputs(CHUNK)
    inputs, any_num = {"latent": latent, **cond}, {0: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch's exporter calls in torch
        torch.onnx.export(
            _Generator(sampler, list(cond)).eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[OUTPUT],
            dynamic_shapes=(any_num, (any_num,) * len(cond)) if cond else (any_num,),
            external_data=False,
            verbose=False,
        )
