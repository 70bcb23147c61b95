"""A wide linear layer becomes two narrow ones: the truncated singular value decomposition of its weight.

Before:  linear(x, W, b)      After:  linear(linear(x, V), U, b)
Shapes:  W [out, in] is near U @ V with U [out, rank] and V [rank, in].
Refuses: a rank at which two layers are no smaller than one.
Source:  Eckart and Young 1936, The approximation of one matrix by another of lower rank.

    compile MODEL --plugin 03_one_file_graft.py --passes canonicalize,fuse,truncate-rank:keep=0.4 --max-drop 0.01 -o OUT
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import nn

from compiler.hookspecs import hookimpl
from compiler.program import Program
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.sites import Refusal, Site


@dataclass(frozen=True)
class TruncateRank(Graft):
    """Keeps the largest singular values; under a budget it first tries twice as many of them."""

    name: ClassVar[str] = "truncate-rank"
    site_kinds: ClassVar[tuple[str, ...]] = ("linear",)

    keep: Annotated[float, "share of the singular values that stay, from 0 to 1"] = 0.25

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        stored = program.weight(site.bindings["weight"]).detach()
        weight = stored.T if site.bindings["weight_transposed"] else stored  # [out, in]
        bias = site.bindings["bias"] and program.weight(site.bindings["bias"]).detach()
        return self.truncated(weight, bias, max(1, round(min(weight.shape) * self.keep)))

    def truncated(self, weight: torch.Tensor, bias: torch.Tensor | None, rank: int) -> Replacement | Refusal:
        """The two layers of that rank."""
        rows, columns = weight.shape
        if rank * (rows + columns) >= rows * columns:
            return Refusal(f"rank {rank} is no smaller than {rows} x {columns}")
        u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
        down, up = nn.Linear(columns, rank, bias=False), nn.Linear(rank, rows, bias=bias is not None)
        down.weight, up.weight = nn.Parameter(vh[:rank]), nn.Parameter(u[:, :rank] * s[:rank])
        if bias is not None:
            up.bias = nn.Parameter(bias)
        return Replacement(
            nn.Sequential(down, up), f"rank {rank}", gentler=lambda: self.truncated(weight, bias, 2 * rank)
        )


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [TruncateRank]
