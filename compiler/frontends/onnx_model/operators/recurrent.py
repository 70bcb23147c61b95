"""Recurrent layers: RNN, GRU and LSTM, onto the operators of the same names in `compiler.ops`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from compiler.frontends.onnx_model.known import Known
from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import Value, operator
from compiler.ops.gru import gru as gru_layer
from compiler.ops.lstm import lstm as lstm_layer
from compiler.ops.recurrence import DIRECTIONS
from compiler.ops.rnn import rnn as rnn_layer


@operator("RNN")
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Value = None,
    initial_h: Tensor | None = None,
    *,
    activations: list[str] | None = None,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float = 0.0,
    direction: str = "forward",
    layout: int = 0,
    node: NodeContext,
) -> tuple[Tensor, ...]:
    x, initial_h = _time_first(layout, x, initial_h)
    form = _form(node, direction, activations, ["Tanh"], activation_alpha, activation_beta, clip)
    return _in_layout(layout, *rnn_layer(x, w, r, b, _lengths(node, x, sequence_lens), initial_h, *form))


@operator("GRU")
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Value = None,
    initial_h: Tensor | None = None,
    *,
    activations: list[str] | None = None,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float = 0.0,
    direction: str = "forward",
    layout: int = 0,
    linear_before_reset: int = 0,
    node: NodeContext,
) -> tuple[Tensor, ...]:
    x, initial_h = _time_first(layout, x, initial_h)
    form = _form(node, direction, activations, ["Sigmoid", "Tanh"], activation_alpha, activation_beta, clip)
    lengths = _lengths(node, x, sequence_lens)
    return _in_layout(layout, *gru_layer(x, w, r, b, lengths, initial_h, bool(linear_before_reset), *form))


@operator("LSTM")
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Value = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activations: list[str] | None = None,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float = 0.0,
    direction: str = "forward",
    layout: int = 0,
    input_forget: int = 0,
    node: NodeContext,
) -> tuple[Tensor, ...]:
    x, initial_h, initial_c = _time_first(layout, x, initial_h, initial_c)
    form = _form(node, direction, activations, ["Sigmoid", "Tanh", "Tanh"], activation_alpha, activation_beta, clip)
    lengths = _lengths(node, x, sequence_lens)
    return _in_layout(layout, *lstm_layer(x, w, r, b, lengths, initial_h, initial_c, p, bool(input_forget), *form))


def _form(
    node: NodeContext,
    direction: str,
    activations: list[str] | None,
    usual: list[str],
    alphas: Sequence[float],
    betas: Sequence[float],
    clip: float,
) -> tuple[Any, ...]:
    """The settings as `compiler.ops.recurrence.Form` has them."""
    wanted = len(usual) * len(DIRECTIONS.get(direction, [False]))
    activations = activations or usual * (wanted // len(usual))
    if len(activations) != wanted:
        raise node.refuse(f"{len(activations)} activations for {direction}", f"It takes {wanted} of them.")
    return direction, activations, list(alphas), list(betas), clip


def _lengths(node: NodeContext, x: Tensor, sequence_lens: Value) -> Tensor | None:
    """[batch], or None where every sequence is known to have all the steps of x."""
    known = isinstance(sequence_lens, Known) and sequence_lens.is_plain and isinstance(x.shape[0], int)
    if known and all(length == x.shape[0] for length in sequence_lens.items()):
        return None
    return None if sequence_lens is None else node.tensor(sequence_lens)


def _time_first(layout: int, *tensors: Tensor | None) -> tuple[Any, ...]:
    """Tensors [batch, length or directions, ...] of layout 1 in the order of layout 0."""
    if any(one is not None and one.dim() != 3 for one in tensors):
        raise ValueError("X and the states have three dims: steps, batch and features")
    return tuple(one if one is None or layout == 0 else one.transpose(0, 1) for one in tensors)


def _in_layout(layout: int, y: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
    """y as [batch, length, directions, hidden] and the states as [batch, directions, hidden] for layout 1."""
    return (y, *states) if layout == 0 else (y.permute(2, 0, 1, 3), *(one.transpose(0, 1) for one in states))
