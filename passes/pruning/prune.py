"""linear(x, W)  ->  linear(x, W * mask): zeros in the place of weights that count little

Before:  linear(x, W, b)
After:   linear(x, V, b) with V zero where W is left out: `sparsity` of the weights, or with pattern=2-of-4 two of every
         four next to each other in a row; chosen by size (magnitude), by size times that of the input (wanda), or so
         that those after them make up for them (sparsegpt)
Shapes:  x [..., in], W and V [out, in].
Lossy:   what is left out is gone. Healing keeps the zeros; with fading=true it starts from the dense weights and lets
         them fade. The budget gives back half of the zeros, then the site.
Refuses: where no backend has a kernel for zeros, unless --allow-simulated: the file keeps its size and the model its
         speed. Weights that other nodes share, that are integers, or not finite; sites of under 1,024 weights.
Source:  Sun et al. 2023, arXiv:2306.11695 (Wanda); Frantar and Alistarh 2023, arXiv:2301.00774 (SparseGPT); Kao et al.
         2022, arXiv:2209.07617 (decaying masks).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from compiler.hookspecs import hookimpl
from compiler.program import Program
from compiler.pruning.masked_linear import MaskedLinear
from compiler.pruning.masks import Compared, Method, Pattern, pattern_mask, wanda_scores
from compiler.pruning.sparsegpt import sparsegpt
from compiler.quantization.calibration_walk import calibration_walk
from compiler.quantization.compensation import damped
from compiler.quantization.stand_ins import LinearWeights, linear_weights
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
from compiler.sites import Refusal, Site
from compiler.weight_readers import unusable_weight

SMALLEST_SITE = 1024
COMPARED: dict[Method, Compared] = {"magnitude": "layer", "wanda": "row", "sparsegpt": "layer"}
"""As the methods' papers compare weights; sparsegpt over the rows of a block of columns."""
LEAST_SPARSITY = 0.1
"""Below this the budget gives a site back."""


@dataclass(frozen=True)
class Prune(ChoosesLayers, Graft):
    """Puts zeros in the place of weights."""

    name: ClassVar[str] = "prune"
    site_kinds: ClassVar[tuple[str, ...]] = ("linear",)
    requires: ClassVar[tuple[str, ...]] = ("canonicalize",)

    method: Annotated[Method, "size; size times that of the input; the same with all later weights making up"] = (
        "sparsegpt"
    )
    sparsity: Annotated[float, "part of the weights that becomes zero"] = 0.5
    pattern: Annotated[str | None, "as 2-of-4: of so many weights in a row so many stay, in the place of sparsity"] = (
        None
    )
    compared: Annotated[
        Compared | None, "weights that are compared with each other; none: as the method's paper has it"
    ] = None
    fading: Annotated[bool, "healing starts from the dense weights and lets what goes fade"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity={self.sparsity:g} is not between 0 and 1")
        if self.pattern is not None:
            Pattern.parse(self.pattern)
            if self.compared is not None:
                raise ValueError(f"compared={self.compared} says nothing beside pattern={self.pattern}")
        if self.compared == "row" and self.method == "sparsegpt":
            raise ValueError("compared=row: sparsegpt compares over the rows of a block of columns")

    @classmethod
    def candidates(cls, kind: str) -> Iterable[Graft]:
        """None: zeros save neither bytes nor seconds where no kernel passes over them."""
        return ()

    @property
    def zeros(self) -> Pattern:
        """Which weights become zero."""
        return Pattern(self.sparsity) if self.pattern is None else Pattern.parse(self.pattern)

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """The layer with zeros, or why it stays."""
        return next(self.propose_all((site,), program, context))

    def propose_all(
        self, sites: Sequence[Site], program: Program, context: PassContext
    ) -> Iterator[Replacement | Refusal]:
        """Each site in turn, with the inputs that the zeros before it leave it."""
        wants_data = self.method != "magnitude" and bool(context.data.calibration)
        walk = calibration_walk(program, context) if wants_data else None
        for site in sites:
            reason = _unfit(site, program, context)
            if reason is not None:
                yield Refusal(reason, site.output.name, site.name, site.kind)
                continue
            statistics = None if walk is None else walk.statistics(site)
            layer = linear_weights(site, program, statistics)
            proposal = self._stand_in(layer, program.weight(site.bindings["weight"]).dtype)
            if walk is not None:
                walk.replace(site, proposal.module)
            if context.max_drop is None:
                proposal.gentler = None  # which would keep the weight and its moment in memory
            yield proposal

    def _stand_in(self, layer: LinearWeights, dtype: torch.dtype) -> Replacement:
        weight, stays = self._pruned(layer)
        dense = layer.weight.to(dtype) if self.fading else None
        module = MaskedLinear(weight.to(dtype), stays, layer.bias, dense)
        blind = ", by size for want of calibration data" if self._is_blind(layer) else ""
        stand_in = Replacement(
            module, f"{self.zeros}, {self.method}{blind}", heal=("*",), learn=module.learn, settle=module.settle
        )
        if self.pattern is None and self.sparsity / 2 >= LEAST_SPARSITY:
            gentler = replace(self, sparsity=self.sparsity / 2)
            stand_in.gentler = lambda: gentler._stand_in(layer, dtype)
        return stand_in

    def _is_blind(self, layer: LinearWeights) -> bool:
        return self.method != "magnitude" and layer.statistics is None

    def _pruned(self, layer: LinearWeights) -> tuple[Tensor, Tensor]:
        """The weight with zeros, and where it has none."""
        weight, known = layer.weight, layer.statistics
        compared = self.compared or COMPARED[self.method]
        if known is None or self.method == "magnitude":
            stays = pattern_mask(weight.abs(), self.zeros, compared)
            return weight * stays, stays
        if self.method == "sparsegpt":
            found = sparsegpt(weight, damped(known.second_moment, known.row_count), self.zeros)
            if found is not None:
                return found
        stays = pattern_mask(wanda_scores(weight, known.second_moment), self.zeros, compared)
        return weight * stays, stays


def _unfit(site: Site, program: Program, context: PassContext) -> str | None:
    if context.lacks_kernel(None) is not None:
        return "its backend has no kernel for zeros: neither smaller nor faster, which --allow-simulated takes"
    if program.weight(site.bindings["weight"]).numel() < SMALLEST_SITE:
        return f"{program.weight(site.bindings['weight']).numel()} weights are too few to be worth it"
    return unusable_weight(program, site)


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [Prune]
