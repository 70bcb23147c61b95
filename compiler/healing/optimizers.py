"""AdamW alone, or Muon for matrices and AdamW for the rest, with one learning rate, or parts of it.

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

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        kind: str,
        learning_rate: float,
        parts: Mapping[str, float] | None = None,
    ) -> None:
        """`parts` are the parameters, by name, that take a part of the learning rate."""
        self._rate = learning_rate
        matrices = {name: one for name, one in parameters.items() if kind == MUON and _is_matrix(one)}
        others = {name: one for name, one in parameters.items() if name not in matrices}
        self._optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            adjusted: Any = {"adjust_lr_fn": "match_rms_adamw"}
            groups = _groups(matrices, parts or {})
            self._optimizers.append(torch.optim.Muon(groups, lr=learning_rate, weight_decay=0.0, **adjusted))
        if others:
            groups = _groups(others, parts or {})
            self._optimizers.append(torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, weight_decay=0.0))

    def step(self, factor: float) -> None:
        """One step at `factor` times the learning rate."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._rate * factor * group["part"]
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


def _groups(parameters: Mapping[str, nn.Parameter], parts: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters that take the same part of the learning rate, together."""
    by_part: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, one in parameters.items():
        by_part[parts.get(name, 1.0)].append(one)
    return [{"params": group, "part": part} for part, group in by_part.items()]


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.dim() == 2 and min(parameter.shape) >= SMALLEST_MATRIX
