"""How much a residual layer changes what goes through it, on calibration data: block influence.

    influence = 1 - mean over rows of cos(what goes in, what comes out)

Source: Men et al. 2024, arXiv:2403.03853 (ShortGPT), eq. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from compiler.evidence.data import Dataset
    from compiler.program import Program
    from compiler.sites import Site

FEATURES = {4: 1}
"""The dim of features by rank, where it is not the last: images are [batch, channels, height, width]."""


def block_influence(program: Program, sites: Sequence[Site], data: Dataset) -> dict[fx.Node, float]:
    """Influence of each site, whose first input its output may be put in the place of, by its output node.

    Empty without calibration data.
    """
    sums: dict[fx.Node, tuple[float, int]] = {}
    for batch in data.calibration:
        recorder = _Recorder(program, sites, data, batch)
        with torch.no_grad():
            recorder.run(*program.complete(batch))
        for node, (total, count) in recorder.cosines.items():
            before = sums.get(node, (0.0, 0))
            sums[node] = before[0] + total, before[1] + count
    return {node: 1 - total / count for node, (total, count) in sums.items() if count}


class _Recorder(fx.Interpreter):
    """Runs the graph and compares what goes into each site with what comes out."""

    def __init__(self, program: Program, sites: Sequence[Site], data: Dataset, batch: tuple[Tensor, ...]) -> None:
        super().__init__(program.graph_module)
        self._into = {site.output: site.inputs[0] for site in sites}
        self._wanted, self._held = set(self._into.values()), dict[fx.Node, Tensor]()
        self._data, self._batch = data, batch
        self.cosines: dict[fx.Node, tuple[float, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._into:
            before, after = (_rows(one) for one in (self._held.pop(self._into[n]), value))
            mask = self._data.row_mask(self._batch, value)
            cosines = torch.nn.functional.cosine_similarity(before, after, dim=-1)
            cosines = cosines if mask is None else cosines[mask.flatten()]
            self.cosines[n] = float(cosines.sum()), cosines.numel()
        if n in self._wanted:
            self._held[n] = value
        return value


def _rows(x: Tensor) -> Tensor:
    """[rows, features] in float64."""
    return x.double().movedim(FEATURES.get(x.dim(), -1), -1).flatten(0, -2)
