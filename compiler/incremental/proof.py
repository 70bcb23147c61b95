"""Proves by numbers that an incremental Program gives the same whatever pieces a sequence is read in.

Both ways record what every node computes. The first node whose values for a token differ is the one that mixes tokens
in a way that no state carries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from compiler.program import Program
from compiler.sites import Refusal
from compiler.states import KEPT_POSITIONS, MASK, TOKENS

PIECES = (1, 4, 6, 2)
"""Sizes of the pieces that the tokens are read in, unlike any other size of small models."""
TOLERANCE = 1e-3
"""Of a node's largest value: rounding in another order, by the depth of any model. Mixing tokens gives order 1."""


def pieces_agree(program: Program, tokens: Tensor) -> Refusal | None:
    """Read one row of `tokens` [1, n] whole and in pieces; the node at fault where the values differ."""
    count = sum(PIECES)
    row = tokens[:1].repeat(1, -(-count // tokens.shape[1]))[:, :count]
    whole: dict[str, Any] = {}
    for values in _read(program, row, (count,)):
        whole = values
    start = 0
    for size, values in zip(PIECES, _read(program, row, PIECES), strict=True):
        for node in program.graph.nodes:
            if not _agrees(whole.get(node.name), values.get(node.name), count, start, size):
                return Refusal("it mixes tokens in a way that no state carries from call to call", node.name)
        start += size
    return None


def _read(program: Program, row: Tensor, pieces: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The values by node name of every call that reads a piece."""
    state_inputs = {state.past: state.present for state in program.states}
    kept = dict(zip((spec.name for spec in program.inputs), program.complete((row,)), strict=True))
    outputs = [spec.name for spec in program.outputs]
    start = 0
    for size in pieces:
        kept[TOKENS] = row[:, start : start + size]
        kept[MASK] = torch.ones(1, start + size, dtype=torch.int64)
        kept[KEPT_POSITIONS] = torch.arange(size)
        recorder = _Recorder(program.graph_module)
        with torch.no_grad():
            found = recorder.run(*(kept[spec.name] for spec in program.inputs))
        presents = dict(zip(outputs, found, strict=True))
        kept |= {past: presents[present] for past, present in state_inputs.items()}
        yield recorder.values
        start += size


class _Recorder(fx.Interpreter):
    """Keeps the floating-point tensors that a graph computes, by node name."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
            self.values[n.name] = value
        return value


def _agrees(whole: Tensor | None, piece: Tensor | None, count: int, start: int, size: int) -> bool:
    """Whether `piece` is the part of `whole` for tokens from `start`: along the one dim that has a size a token."""
    if whole is None or piece is None or whole.dim() != piece.dim():
        return True
    dims = [dim for dim in range(whole.dim()) if whole.shape[dim] == count and piece.shape[dim] == size]
    if len(dims) != 1 or any(
        ours != theirs
        for dim, (ours, theirs) in enumerate(zip(whole.shape, piece.shape, strict=True))
        if dim != dims[0]
    ):
        return True
    expected = whole.narrow(dims[0], start, size)
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return bool(torch.allclose(piece, expected, rtol=0.0, atol=TOLERANCE * max(scale, 1e-6), equal_nan=True))
