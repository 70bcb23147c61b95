"""Recurrent layers: the dialect's are ONNX's own, and torch's become one ONNX node for every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.shapes import sliced
from compiler.errors import CompilerError
from compiler.ops.recurrence import regrouped


def _optional(w: GraphWriter, node: fx.Node | None) -> ir.Value | None:
    return None if node is None else w.value(node)


def _lengths(w: GraphWriter, node: fx.Node | None) -> ir.Value | None:
    return None if node is None else w.tensor(node, torch.int32)


def _settings(
    r: fx.Node, direction: str, activations: Sequence[str], alphas: Sequence[float], betas: Sequence[float], clip: float
) -> dict[str, Any]:
    return {
        "hidden_size": int(r.meta["val"].shape[-1]),
        "direction": direction,
        "activations": list(activations),
        "activation_alpha": list(alphas) or None,
        "activation_beta": list(betas) or None,
        "clip": clip if clip > 0 else None,
    }


@translates("regraft.rnn.default")
def rnn(
    w: GraphWriter, node: fx.Node, x: Any, weight: Any, r: Any, b: Any, lengths: Any, first: Any, *form: Any
) -> tuple[ir.Value, ...]:
    inputs = w.value(x), w.value(weight), w.value(r), _optional(w, b), _lengths(w, lengths), _optional(w, first)
    return w.emit_several("RNN", *inputs, outputs=2, **_settings(r, *form))


@translates("regraft.gru.default")
def gru(
    w: GraphWriter, node: fx.Node, x: Any, weight: Any, r: Any, b: Any, lengths: Any, first: Any, linear: bool,
    *form: Any,
) -> tuple[ir.Value, ...]:  # fmt: skip
    inputs = w.value(x), w.value(weight), w.value(r), _optional(w, b), _lengths(w, lengths), _optional(w, first)
    return w.emit_several("GRU", *inputs, outputs=2, linear_before_reset=int(linear), **_settings(r, *form))


@translates("regraft.lstm.default")
def lstm(
    w: GraphWriter, node: fx.Node, x: Any, weight: Any, r: Any, b: Any, lengths: Any, first_h: Any, first_c: Any,
    p: Any, input_forget: bool, *form: Any,
) -> tuple[ir.Value, ...]:  # fmt: skip
    optional = (_optional(w, one) for one in (first_h, first_c, p))
    inputs = w.value(x), w.value(weight), w.value(r), _optional(w, b), _lengths(w, lengths), *optional
    return w.emit_several("LSTM", *inputs, outputs=3, input_forget=int(input_forget), **_settings(r, *form))


@translates("aten.lstm.input")
def torch_lstm(
    w: GraphWriter, node: fx.Node, x: fx.Node, states: Sequence[fx.Node], weights: Sequence[fx.Node], *form: Any
) -> tuple[ir.Value, ...]:
    if len(states) > 2 or len({one.meta["val"].shape[-1] for one in states}) > 1:
        raise CompilerError("lowering to ONNX", "an LSTM with projections", "ONNX's LSTM has none.", node.name)
    y, h, c = _torch_layers(w, node, "LSTM", x, states, weights, (0, 3, 1, 2), *form)
    return y, h, c


@translates("aten.gru.input")
def torch_gru(
    w: GraphWriter, node: fx.Node, x: fx.Node, first: fx.Node, weights: Sequence[fx.Node], *form: Any
) -> tuple[ir.Value, ...]:
    return _torch_layers(w, node, "GRU", x, [first], weights, (1, 0, 2), *form, linear_before_reset=1)


@translates("aten.rnn_tanh.input")
def torch_rnn_tanh(
    w: GraphWriter, node: fx.Node, x: fx.Node, first: fx.Node, weights: Sequence[fx.Node], *form: Any
) -> tuple[ir.Value, ...]:
    return _torch_layers(w, node, "RNN", x, [first], weights, (0,), *form, function="Tanh")


@translates("aten.rnn_relu.input")
def torch_rnn_relu(
    w: GraphWriter, node: fx.Node, x: fx.Node, first: fx.Node, weights: Sequence[fx.Node], *form: Any
) -> tuple[ir.Value, ...]:
    return _torch_layers(w, node, "RNN", x, [first], weights, (0,), *form, function="Relu")


def _torch_layers(
    w: GraphWriter, node: fx.Node, op: str, x: fx.Node, states: Sequence[fx.Node], weights: Sequence[fx.Node],
    gates: Sequence[int], has_biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool,
    batch_first: bool, *, function: str | None = None, linear_before_reset: int | None = None,
) -> tuple[ir.Value, ...]:  # fmt: skip
    """One node a layer. `gates` says where ONNX's gates stand in torch's order."""
    if train and dropout > 0 and layers > 1:
        raise CompilerError("lowering to ONNX", "dropout between layers", "Call .eval() on the model.", node.name)
    count = 2 if bidirectional else 1
    value = w.emit("Transpose", w.value(x), perm=[1, 0, 2]) if batch_first else w.value(x)
    hidden = int(weights[1].meta["val"].shape[-1])
    last: list[tuple[ir.Value, ...]] = []
    each = 4 if has_biases else 2
    for layer in range(layers):
        own = [weights[(layer * count + direction) * each :][:each] for direction in range(count)]
        kernel, recurrent = (_joined(w, [one[which] for one in own], gates) for which in (0, 1))
        biases = None
        if has_biases:
            biases = w.emit("Concat", *(_joined(w, [one[which] for one in own], gates) for which in (2, 3)), axis=-1)
        first = (sliced(w, w.value(one), 0, layer * count, (layer + 1) * count) for one in states)
        y, *after = w.emit_several(
            op, value, kernel, recurrent, biases, None, *first, outputs=1 + len(states), hidden_size=hidden,
            direction="bidirectional" if bidirectional else "forward",
            activations=[function] * count if function else None, linear_before_reset=linear_before_reset,
        )  # fmt: skip
        last.append(tuple(after))
        rows = w.emit("Transpose", y, perm=[0, 2, 1, 3])  # [length, batch, directions, hidden]
        value = w.emit("Reshape", rows, w.constant([0, 0, -1], np.int64))
    joined = [_concatenated(w, list(parts)) for parts in zip(*last, strict=True)]
    return (w.emit("Transpose", value, perm=[1, 0, 2]) if batch_first else value, *joined)


def _joined(w: GraphWriter, weights: Sequence[fx.Node], gates: Sequence[int]) -> ir.Value:
    """Weights of each direction as [directions, gates * hidden, ...] in ONNX's order."""
    axis = w.constant([0], np.int64)
    return _concatenated(w, [w.emit("Unsqueeze", _in_order(w, one, gates), axis) for one in weights])


def _in_order(w: GraphWriter, weight: fx.Node, gates: Sequence[int]) -> ir.Value:
    if len(gates) == 1:
        return w.value(weight)
    arrange: Callable[[Tensor], Tensor] = partial(regrouped, order=gates)
    if weight.op == "get_attr":
        return w.weight(weight, arrange, "gates")
    hidden = weight.meta["val"].shape[0] // len(gates)
    parts = [sliced(w, w.value(weight), 0, gate * hidden, (gate + 1) * hidden) for gate in gates]
    return w.emit("Concat", *parts, axis=0)


def _concatenated(w: GraphWriter, parts: list[ir.Value]) -> ir.Value:
    return w.emit("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]
