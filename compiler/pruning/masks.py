"""Which weights of a matrix stay: by a score, compared within a row or the whole matrix, or n of every m in a row.

    magnitude    |W_ij|                       compared over the layer
    wanda        |W_ij| * sqrt(E[x_j^2])      compared over each row, the weights of one output

Source: Han et al. 2015, arXiv:1506.02626 (magnitude); Sun et al. 2023, arXiv:2306.11695 (Wanda), eq. 1 and section 3;
Mishra et al. 2021, arXiv:2104.08378 (2:4).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Method = Literal["magnitude", "wanda", "sparsegpt"]
Compared = Literal["row", "layer"]

N_OF_M = re.compile(r"([1-9]\d*)-of-([1-9]\d*)")


@dataclass(frozen=True)
class Pattern:
    """`sparsity` is the part of the weights that goes; with `group` that holds for every so many inputs in a row."""

    sparsity: float
    group: int | None = None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """`2-of-4`: of four weights next to each other two stay. Raises ValueError for anything else."""
        found = N_OF_M.fullmatch(text)
        stay, size = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 0 < stay < size:
            raise ValueError(f"pattern={text} is not as 2-of-4: of so many weights so many stay")
        return cls(1 - stay / size, size)

    def __str__(self) -> str:
        if self.group is None:
            return f"{self.sparsity:.0%} zeros"
        return f"{self.stay} of {self.group}"

    @property
    def stay(self) -> int:
        """How many of a group stay."""
        assert self.group is not None
        return round((1 - self.sparsity) * self.group)


def pattern_mask(scores: Tensor, pattern: Pattern, compared: Compared) -> Tensor:
    """True where weights stay, for scores [out, in]: the lowest go, of equals the first.

    Where groups do not fill a row, the rest of it is a group of its own of which as many stay, or all.
    """
    if pattern.group is None:
        lists = scores.flatten()[None] if compared == "layer" else scores
        return _without_lowest(lists, int(lists.shape[1] * pattern.sparsity)).reshape(scores.shape)
    out, width = scores.shape
    padding = -width % pattern.group
    padded = torch.nn.functional.pad(scores, (0, padding), value=-torch.inf)
    groups = padded.reshape(-1, pattern.group)
    return _without_lowest(groups, pattern.group - pattern.stay).reshape(out, -1)[:, :width]


def wanda_scores(weight: Tensor, second_moment: Tensor) -> Tensor:
    """weight [out, in] and the second moment of the inputs [in, in] to [out, in]."""
    return weight.abs() * second_moment.diagonal().clamp(min=0).sqrt()


def _without_lowest(scores: Tensor, count: int) -> Tensor:
    """True but for the `count` lowest of each row."""
    lowest = torch.argsort(scores, dim=1, stable=True)[:, :count]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, value=False)
