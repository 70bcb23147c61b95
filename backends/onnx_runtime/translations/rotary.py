"""Rotary position embeddings as ai.onnx RotaryEmbedding, whose kernel turns a head in one sweep."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import GraphWriter, known_size
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.shapes import expanded, shape_of


@translates("regraft.rotary_embedding.default")
def rotary_embedding(
    w: GraphWriter, node: fx.Node, x: fx.Node, cos: fx.Node, sin: fx.Node, interleaved: bool
) -> ir.Value:
    dtype = x.meta["val"].dtype
    if torch.float64 in (dtype, cos.meta["val"].dtype):
        return _written_out(w, x, cos, sin, interleaved)
    head_dim, rotary_dim = known_size(shape_of(x)[-1]), 2 * (known_size(shape_of(cos)[-1]) or 0)
    result = w.emit(
        "RotaryEmbedding",
        w.tensor(x, torch.float32),
        _for_every_row(w, cos, x),
        _for_every_row(w, sin, x),
        interleaved=int(interleaved) or None,
        rotary_embedding_dim=None if rotary_dim == head_dim else rotary_dim,
    )
    return result if dtype == torch.float32 else w.cast(result, dtype)


def _for_every_row(w: GraphWriter, angles: fx.Node, x: fx.Node) -> ir.Value:
    """cos or sin with the batch of x, for all layers at once: ONNX Runtime does not broadcast it."""
    shape = shape_of(angles)
    wanted = [shape_of(x)[0], *shape[1:]]

    def make() -> ir.Value:
        return expanded(w, w.tensor(angles, torch.float32), shape, wanted)

    made: ir.Value = w.shared(("angles", angles.name, str(wanted[0])), make)
    return made


def _written_out(w: GraphWriter, x: fx.Node, cos: fx.Node, sin: fx.Node, interleaved: bool) -> ir.Value:
    """The operator's formula in float64, for which ONNX Runtime has no kernel."""
    pairs, head_dim = shape_of(cos)[-1], shape_of(x)[-1]
    batch, heads, tokens, _ = shape_of(x)
    given = w.tensor(x, torch.float64)
    cosine, sine = (w.emit("Unsqueeze", w.tensor(one, torch.float64), w.constant([1], np.int64)) for one in (cos, sin))
    if interleaved:
        first, second = (_part(w, given, start, 2 * pairs, 2) for start in (0, 1))
    else:
        first, second = _part(w, given, 0, pairs), _part(w, given, pairs, 2 * pairs)
    lower = w.emit("Sub", w.emit("Mul", first, cosine), w.emit("Mul", second, sine))
    upper = w.emit("Add", w.emit("Mul", second, cosine), w.emit("Mul", first, sine))
    if interleaved:
        parts = [w.emit("Unsqueeze", half, w.constant([-1], np.int64)) for half in (lower, upper)]
        joined = w.emit("Concat", *parts, axis=-1)
        turned = w.emit("Reshape", joined, w.sizes([batch, heads, tokens, 2 * pairs]))
    else:
        turned = w.emit("Concat", lower, upper, axis=-1)
    if 2 * pairs != head_dim:
        turned = w.emit("Concat", turned, _part(w, given, 2 * pairs, head_dim), axis=-1)
    dtype = x.meta["val"].dtype
    return turned if dtype == torch.float64 else w.cast(turned, dtype)


def _part(w: GraphWriter, value: ir.Value, start: int, stop: int, step: int = 1) -> ir.Value:
    """`value[..., start:stop:step]`"""
    return w.emit("Slice", value, *(w.constant([one], np.int64) for one in (start, stop, -1, step)))
