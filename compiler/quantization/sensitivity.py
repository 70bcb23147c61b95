"""How much the outputs of a Program mind an error at a site: second moments of gradients, on calibration data.

For an error d [rows, out] in what a site gives, independent of the gradient g of -log p(y) for labels y drawn from the
model itself, the divergence of the outputs is a half of the sum over rows and outputs of E[g**2] d**2, to second order.
Outputs that are no choice take the gradient of a random projection, and the divergence is half the squared error.

Source: Dong et al. 2020, arXiv:1911.03852; Kunstner et al. 2019, arXiv:1905.12558, eq. 3 (labels from the model).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from compiler.evidence.fidelity import CHOOSING_ROLES, main_output

if TYPE_CHECKING:
    from compiler.evidence.data import Dataset
    from compiler.program import Program

MOST_BATCHES = 8
MOST_ROWS = 512
"""Rows of output that go backward together: bounds the memory, which gradients of logits decide."""


def gradient_power(
    program: Program,
    nodes: Iterable[fx.Node],
    data: Dataset,
    seed: int = 0,
    feature_dims: Mapping[fx.Node, int] | None = None,
) -> dict[fx.Node, Tensor]:
    """For each node, the mean over rows of the squared gradient: [features]. Empty without calibration data.

    Features lie in the last dim, or where `feature_dims` says.
    """
    totals: dict[fx.Node, Tensor] = {}

    def add(node: fx.Node, value: Tensor, gradient: Tensor) -> None:
        power = gradient.float().square().movedim((feature_dims or {}).get(node, -1), -1).flatten(0, -2).sum(0)
        totals[node] = totals[node] + power if node in totals else power

    rows = backward_passes(program, {node: node for node in nodes}, data, seed, add)
    return {node: total / rows for node, total in totals.items()}


def backward_passes(
    program: Program,
    wanted: Mapping[fx.Node, fx.Node],
    data: Dataset,
    seed: int,
    take: Callable[[fx.Node, Tensor, Tensor], None],
) -> int:
    """Run batches of calibration data forward and back, and count the rows of output that were learned from.

    `take(node, value, gradient)` is called for each of `wanted` with the gradient at it and the value of the node that
    it is wanted with.
    """
    generator = torch.Generator().manual_seed(seed)
    recorder = _GradientRecorder(program, wanted, take)
    rows = 0
    for batch in data.calibration[:MOST_BATCHES]:
        tokens = next((one.shape[1] for one in batch if one.dim() == 2 and not one.is_floating_point()), 1)
        cut = tuple(one[: max(1, MOST_ROWS // tokens)] if one.dim() else one for one in batch)
        with torch.enable_grad():
            output = recorder.run(*program.complete(cut))[main_output(program)].float()
            mask = data.row_mask(cut, output)
            kept = output.flatten(0, -2) if mask is None else output[mask]
            if kept.requires_grad and len(kept):
                _loss(kept, program.role, generator).backward()  # type: ignore[no-untyped-call]
                rows += len(kept)
    return rows


def _loss(rows: Tensor, role: str, generator: torch.Generator) -> Tensor:
    if role not in CHOOSING_ROLES:
        return (rows * torch.randn(rows.shape, generator=generator)).sum()
    labels = torch.multinomial(rows.detach().softmax(-1), 1, generator=generator)[:, 0]
    return torch.nn.functional.cross_entropy(rows, labels, reduction="sum")


class _GradientRecorder(fx.Interpreter):
    """Runs the graph and hands over the gradients of wanted nodes as they come back."""

    def __init__(
        self, program: Program, wanted: Mapping[fx.Node, fx.Node], take: Callable[[fx.Node, Tensor, Tensor], None]
    ) -> None:
        super().__init__(program.graph_module)
        self.wanted, self.take = dict(wanted), take

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Weights as constants: they need no gradients."""
        value = super().get_attr(target, args, kwargs)
        return value.detach() if isinstance(value, Tensor) else value

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            value = value if value.requires_grad else value.detach().requires_grad_()
            beside = value.detach() if self.wanted[n] is n else self.env[self.wanted[n]].detach()
            value.register_hook(lambda gradient: self.take(n, beside, gradient))
        return value
