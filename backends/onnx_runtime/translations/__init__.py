"""How each ATen and regraft operator is written in ONNX: one function an operator, found by the operator's name.

A translation gets the writer, the node, and its arguments in the order of the operator's schema, defaults filled
in. It returns the value that the node computes, or a tuple of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

Translation = Callable[..., Any]
TRANSLATIONS: dict[str, Translation] = {}


def translates(*names: str) -> Callable[[Translation], Translation]:
    """Register a translation for operators such as `aten.add.Tensor`."""

    def register(function: Translation) -> Translation:
        for name in names:
            if name in TRANSLATIONS:
                raise ValueError(f"two translations of {name}")
            TRANSLATIONS[name] = function
        return function

    return register


def operator_name(node: fx.Node) -> str:
    """`aten.add.Tensor` for an operator; `operator.mul` for a Python function."""
    target = node.target
    if hasattr(target, "_schema"):
        return str(target)
    module = str(getattr(target, "__module__", "")).lstrip("_")
    return f"{module}.{getattr(target, '__name__', target)}"


def arguments(node: fx.Node) -> list[Any]:
    """The node's arguments in the order of the operator's schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return list(node.args)
    bound = []
    for index, argument in enumerate(schema.arguments):
        if index < len(node.args) and not argument.kwarg_only:
            bound.append(node.args[index])
        else:
            bound.append(node.kwargs.get(argument.name, argument.default_value))
    return bound


def load_all() -> dict[str, Translation]:
    """Every translation by operator name."""
    from compiler.backends.onnx_runtime.translations import (  # noqa: F401
        activations,
        algebra,
        arithmetic,
        attention,
        bidirectional_window,
        cached_attention,
        casts,
        channels,
        comparison,
        context_score,
        control_flow,
        convolution,
        creation,
        cumulative,
        data_dependent,
        elementwise,
        indexing,
        linear_attention,
        losses,
        matrix_inverse,
        mixture_of_experts,
        normalization,
        packed_codes,
        pooling,
        products,
        quantization,
        quantized,
        random_numbers,
        recurrent,
        reductions,
        resize,
        rotary,
        routed_attention,
        sampling,
        shapes,
        sizes,
        sliding_window,
    )

    return TRANSLATIONS
