"""What flows into chosen nodes on calibration data: second moments and ranges, gathered in one run of the Program.

Nothing larger than [features, features] a node is kept, whatever the amount of data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from compiler.evidence.data import Dataset
    from compiler.program import Program


@dataclass(frozen=True)
class ActivationStatistics:
    """Of one activation x [..., features].

    second_moment [features, features] is the mean of x^T x over `row_count` rows that are no padding, and
    row_range_power that of (max(x, 0) - min(x, 0)) ** 2. Minima and maxima [samples, features] are those of each sample
    (of each batch, where x is a matrix), padding included, since a kernel that takes one scale sees it.
    """

    second_moment: Tensor
    minima: Tensor
    maxima: Tensor
    row_range_power: float
    row_count: int

    @property
    def typical_magnitude(self) -> Tensor:
        """The mean over samples of max |x| for each feature: [features]."""
        return torch.maximum(self.maxima.abs(), self.minima.abs()).mean(0)

    def rounding_noise(self, smoothing: Tensor | None = None) -> float:
        """Variance that 8-bit rounding with one scale a sample adds to x, or to x / smoothing."""
        divisor = 1.0 if smoothing is None else smoothing
        high = (self.maxima / divisor).amax(1).clamp(min=0)
        low = (self.minima / divisor).amin(1).clamp(max=0)
        return float((((high - low) / 255) ** 2).mean()) / 12

    @property
    def rounding_noise_by_row(self) -> float:
        """Variance that 8-bit rounding with one scale a row adds to x."""
        return self.row_range_power / 255**2 / 12

    def noise_ratio(self, weight: Tensor, noise: float) -> float:
        """Power of the error of x @ weight.T from `noise` in x, over that of the product: weight [out, in]."""
        power = float(((weight @ self.second_moment) * weight).sum())
        return noise * float(weight.square().sum()) / max(power, 1e-30)


def activation_statistics(program: Program, nodes: Iterable[fx.Node], data: Dataset) -> dict[str, ActivationStatistics]:
    """Statistics by node name, for nodes with a float value of rank 2 or more. Empty without calibration data."""
    wanted = {node for node in nodes if _is_activation(node)}
    gathered: dict[str, Gathering] = {node.name: Gathering() for node in wanted}
    for batch in data.calibration:
        with torch.no_grad():
            _Recorder(program.graph_module, wanted, gathered, data, batch).run(*program.complete(batch))
    return {name: one.finished() for name, one in gathered.items() if one.row_count}


class Gathering:
    """Sums that become ActivationStatistics."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.row_count = 0
        self.row_range_power = 0.0
        self.minima: list[Tensor] = []
        self.maxima: list[Tensor] = []

    def add(self, x: Tensor, row_mask: Tensor | None) -> None:
        """Take in x [..., features]; rows where row_mask [...] is False are padding."""
        x = x.detach().float()
        samples = x.flatten(1, -2) if x.dim() > 2 else x[None]  # [samples, rows, features]
        if samples.shape[0] * samples.shape[1] == 0:
            return
        self.minima.append(samples.amin(1))
        self.maxima.append(samples.amax(1))
        rows = samples.flatten(0, 1)
        if row_mask is not None:
            rows = rows[row_mask.flatten()]
        spread = rows.amax(1).clamp(min=0) - rows.amin(1).clamp(max=0)  # [rows]
        self.row_range_power += float(spread.square().sum())
        if self.total is None:
            self.total = rows.new_zeros(rows.shape[1], rows.shape[1])
        self.total.addmm_(rows.T, rows)
        self.row_count += len(rows)

    def finished(self) -> ActivationStatistics:
        assert self.total is not None
        count = self.row_count
        power = self.row_range_power / count
        return ActivationStatistics(self.total / count, torch.cat(self.minima), torch.cat(self.maxima), power, count)


class _Recorder(fx.Interpreter):
    """Runs the graph and hands the values of wanted nodes to their gatherings."""

    def __init__(
        self,
        module: fx.GraphModule,
        wanted: set[fx.Node],
        gathered: dict[str, Gathering],
        data: Dataset,
        batch: tuple[Tensor, ...],
    ) -> None:
        super().__init__(module)
        self.wanted, self.gathered, self.data, self.batch = wanted, gathered, data, batch

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.gathered[n.name].add(value, self.data.row_mask(self.batch, value))
        return value


def _is_activation(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2
