"""linear and embedding  ->  the same with weights stored in 16 bits and widened as they are used

Before:  linear(x, W, b); embedding(E, indices)
After:   linear(x, to(W16, x.dtype), b); to(embedding(E16, indices), E.dtype)
Shapes:  those of the site; half the bytes where weights were float32.
Lossy:   float16 keeps 11 bits of a weight and 5 of its exponent, bfloat16 8 and 8. Products are computed as before.
Refuses: weights that are not float32 or float64; float16 for weights beyond its largest value, 65504.
Source:  IEEE 754-2008, binary16; bfloat16 as in Kalamkar et al. 2019, arXiv:1905.12322.

A plugin that uses only the public interface: what stands here works the same from any file given by --plugin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.hookspecs import hookimpl
from compiler.program import Program
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.sites import Refusal, Site


@dataclass(frozen=True)
class StoreHalf(Graft):
    """Halves what linear layers and embeddings take on disk, at next to no loss."""

    name: ClassVar[str] = "store-half"
    site_kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding")

    dtype: Annotated[Literal["float16", "bfloat16"], "what weights are stored as"] = "float16"

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        weight = program.weight(site.bindings["weight"]).detach()
        if weight.dtype not in (torch.float32, torch.float64):
            return Refusal(f"the weight is {str(weight.dtype).removeprefix('torch.')}")
        stored = weight.to(getattr(torch, self.dtype))
        if not torch.isfinite(stored).all():
            return Refusal(f"a weight is beyond what {self.dtype} can hold")
        if site.kind == "embedding":
            return Replacement(HalfEmbedding(stored, weight.dtype), self.dtype)
        if site.bindings["weight_transposed"]:
            stored = stored.T.contiguous()
        bias = site.bindings["bias"]
        return Replacement(HalfLinear(stored, program.weight(bias).detach() if bias else None), self.dtype)


class HalfLinear(nn.Module):
    """weight [out_features, in_features] in 16 bits; the product is computed in the dtype of x."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias) if bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype), self.bias)


class HalfEmbedding(nn.Module):
    """weight [vocabulary, width] in 16 bits; only the rows that are looked up are widened."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.dtype = dtype

    def forward(self, indices: Tensor) -> Tensor:
        return functional.embedding(indices, self.weight).to(self.dtype)


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [StoreHalf]
