"""Adam that starts quickly, and can leave out an update without asking the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from genmodels.model import OptimizerConfig


class Adam:
    """Kingma & Ba 2015, algorithm 1, by torch's fused kernel: bit for bit what `torch.optim.Adam(fused=True)` does.

    Making one of those imports torch.compile's machinery (torch 2.13), a third of a training's start; the functional
    form does not. A parameter without a gradient is left alone.
    """

    def __init__(self, parameters: Sequence[Tensor], config: OptimizerConfig):
        self.parameters, self.config = parameters, config
        self.lr = config.lr
        self.skip: Tensor | None = None  # scalar on the parameters' device: the next update is left out where it is 1
        self.moments: dict[int, dict[str, Tensor]] = {}  # by parameter, from its first gradient on

    @torch.no_grad()
    def step(self) -> None:
        """One update from the parameters' gradients."""
        used = [number for number, parameter in enumerate(self.parameters) if parameter.grad is not None]
        for number in used:
            if number not in self.moments:
                self.moments[number] = _new_moments(self.parameters[number])
        moments = [self.moments[number] for number in used]
        adam(
            [self.parameters[number] for number in used],
            [gradient for parameter in self.parameters if (gradient := parameter.grad) is not None],
            [each["exp_avg"] for each in moments],
            [each["exp_avg_sq"] for each in moments],
            [],
            [each["step"] for each in moments],
            fused=True,
            found_inf=self.skip,
            amsgrad=False,
            beta1=self.config.betas[0],
            beta2=self.config.betas[1],
            lr=self.lr,
            weight_decay=0.0,
            eps=self.config.eps,
            maximize=False,
        )

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """The moments by parameter; settings are the configuration's, which a sweep may change."""
        return self.moments

    def load_state_dict(self, state: dict[Any, dict[Any, Any]]) -> None:
        """Takes over copies of the moments, on the parameters' devices and in their memory formats."""
        state = state.get("state", state)  # as torch.optim.Adam keeps it, in checkpoints of before November 2026
        self.moments = {number: _new_moments(self.parameters[number]) for number in state}
        for number, values in state.items():
            for name, value in values.items():
                self.moments[number][name].copy_(value)


def _new_moments(parameter: Tensor) -> dict[str, Tensor]:
    return {
        "step": torch.zeros((), device=parameter.device),  # on the device, so that a skipped update does not count
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }
