"""What a researcher would write instead: one short torch script for each model, in fp32, as the papers have it.

Every file has a `Script`: networks as children named as the model's, one optimiser a phase, and `step(batch)`, which
trains on one batch and returns the loss of each phase that ran. Nothing here is tuned, nothing here imports genmodels.
"""

from __future__ import annotations

import importlib

import torch
from torch import nn


def plain_script(name: str, **settings: object) -> nn.Module:
    """The script of a model, with weights of its own."""
    return importlib.import_module(f"bench.plain.{name}").Script(**settings)


@torch.no_grad()
def load_weights(script: nn.Module, weights: dict[str, list[torch.Tensor]]) -> None:
    """Gives the script's networks a model's weights, by network, in the model's order."""
    for name, net in script.named_children():
        for own, other in zip(net.parameters(), weights[name], strict=True):
            assert own.shape == other.shape, f"{name}: {tuple(own.shape)} against {tuple(other.shape)}"
            own.copy_(other)
