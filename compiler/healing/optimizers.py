"""AdamW alone, or Muon for matrices and AdamW for the rest, with one learning rate for all of them.

Muon's steps are scaled to the size of AdamW's, so that one rate serves both. Source: Loshchilov and Hutter 2019,
arXiv:1711.05101; Jordan et al. 2024, Muon; Liu et al. 2025, arXiv:2502.16982, section 2.2 (the scale).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

MUON = "muon"
SMALLEST_MATRIX = 2
BETAS = (0.9, 0.95)


class Optimizers:
    """One or two optimizers over named parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], kind: str, learning_rate: float) -> None:
        self._rate = learning_rate
        matrices = [one for one in parameters.values() if kind == MUON and _is_matrix(one)]
        taken = {id(one) for one in matrices}
        others = [one for one in parameters.values() if id(one) not in taken]
        self._optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            adjusted: Any = {"adjust_lr_fn": "match_rms_adamw"}
            self._optimizers.append(torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.0, **adjusted))
        if others:
            self._optimizers.append(torch.optim.AdamW(others, lr=learning_rate, betas=BETAS, weight_decay=0.0))

    def step(self, factor: float) -> None:
        """One step at `factor` times the learning rate."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._rate * factor
            optimizer.step()

    def forget(self) -> None:
        """Drop momentum and variances."""
        for optimizer in self._optimizers:
            optimizer.state = defaultdict(dict)

    def state(self) -> list[dict[str, Any]]:
        """For a checkpoint."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load(self, states: list[dict[str, Any]]) -> None:
        """Take up what `state` gave."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.dim() == 2 and min(parameter.shape) >= SMALLEST_MATRIX
