"""Random numbers, from ONNX Runtime's own generator: they are other ones in every session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from compiler.backends.onnx_runtime.graph_writer import DATA_TYPES, GraphWriter, known_size
from compiler.backends.onnx_runtime.kernel_types import computed
from compiler.backends.onnx_runtime.translations import translates
from compiler.backends.onnx_runtime.translations.creation import filled
from compiler.backends.onnx_runtime.translations.elementwise import result_type
from compiler.errors import CompilerError


@translates("aten.rand.default")
def rand(w: GraphWriter, node: fx.Node, size: Sequence[Any], *rest: Any) -> ir.Value:
    return _drawn(w, "RandomUniform", node, size)


@translates("aten.randn.default")
def randn(w: GraphWriter, node: fx.Node, size: Sequence[Any], *rest: Any) -> ir.Value:
    return _drawn(w, "RandomNormal", node, size)


def _drawn(w: GraphWriter, op: str, node: fx.Node, size: Sequence[Any]) -> ir.Value:
    dtype = int(DATA_TYPES[result_type(node)])
    known = [known_size(one) for one in size]
    if None not in known:
        return w.emit(op, shape=known, dtype=dtype)
    return w.emit(f"{op}Like", filled(w, size, 0.0, torch.float32), dtype=dtype)


@translates("aten.bernoulli.default")
def bernoulli(w: GraphWriter, node: fx.Node, probabilities: fx.Node, *rest: Any) -> ir.Value:
    """Written out: ONNX Runtime expands Bernoulli to its function in opset 15, which gives the complement."""
    drawn = w.emit("RandomUniformLike", w.value(probabilities))
    return w.cast(computed(w, "Less", result_type(node), drawn, probabilities, result=torch.bool), result_type(node))


@translates("aten.multinomial.default")
def multinomial(
    w: GraphWriter, node: fx.Node, probabilities: fx.Node, samples: int, replacement: bool, *rest: Any
) -> ir.Value:
    """Raises CompilerError where no class may be drawn twice."""
    if not replacement and samples != 1:
        problem = "multinomial draws without replacement"
        raise CompilerError("lowering to ONNX", problem, "Draw one sample, or with replacement.", node.name)
    logits = computed(w, "Log", torch.float32, probabilities)
    return w.emit("Multinomial", logits, sample_size=samples, dtype=int(ir.DataType.INT64))
