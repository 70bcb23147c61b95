"""x * rsqrt(mean(x ** 2) + epsilon) * weight  ->  rms_norm(x, weight, epsilon)

Before:  [to float32] -> pow -> mean -> add -> rsqrt -> mul -> [to x's dtype] -> mul        After:  rms_norm
         also aten.rms_norm; x * x for pow; x / sqrt(...) for x * rsqrt(...); a weight that is computed, such as 1 + w
Shapes:  x [..., width], weight [width]; epsilon a Python float.
Exact up to rounding: 1e-6 in float32, 1e-2 in bfloat16, where the product with the weight is now taken in float32.
Refuses: the mean is not over the last dim alone; an inner value has other users; no weight, or one that is not 1-d;
         the result has another dtype than x.
Source:  Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4; the 1 + w form: Gemma Team 2024, arXiv:2403.08295.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

import compiler.ops.rms_norm  # noqa: F401  (defines the operator)
from compiler.hookspecs import hookimpl
from compiler.patterns import (
    CASTS,
    argument,
    aten,
    has_tensor,
    insert_call,
    is_call,
    only_user,
    operands,
    replace,
    same_size,
    scalar,
    value,
)
from compiler.program import Program
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal


@dataclass(frozen=True)
class FuseRmsNorm(Rewrite):
    """x * rsqrt(mean(x ** 2) + epsilon) * weight  ->  rms_norm(x, weight, epsilon)"""

    name: ClassVar[str] = "fuse-rms-norm"
    family: ClassVar[str | None] = "fuse"

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite in place. `changed` names the nodes whose values rms_norm computes now."""
        changed: list[str] = []
        refusals: list[Refusal] = []
        for node in list(program.graph.nodes):
            found = _match(node)
            if isinstance(found, Refusal):
                refusals.append(found)
            elif found is not None:
                fused = insert_call(
                    found.output, torch.ops.regraft.rms_norm.default, found.x, found.weight, found.epsilon
                )
                changed.append(found.output.name)
                replace(found.output, fused)
        if changed:
            program.refresh()
        return PassResult(changed=tuple(changed), refusals=tuple(refusals))


@dataclass(frozen=True)
class _RmsNorm:
    """One match: the value to normalise, its weight, epsilon, and the node that rms_norm replaces."""

    x: fx.Node
    weight: fx.Node
    epsilon: float
    output: fx.Node


def _match(node: fx.Node) -> _RmsNorm | Refusal | None:
    """The RMS norm whose mean is `node`, or that `node` is in one operator."""
    if node._erased:
        return None
    if is_call(node, aten.rms_norm.default):
        return _match_operator(node)
    square = operands(node)[0] if is_call(node, aten.mean.dim) else None
    x = _squared(square)
    if x is None:
        return None
    root = _inverse_root(node)
    if root is None:
        return None
    added, inverse, epsilon = root
    normal = next((user for user in inverse.users if _scales(user, x, inverse)), None)
    if normal is None:
        return None

    def refused(reason: str, at: fx.Node = node) -> Refusal:
        return Refusal(reason, at.name, at.name, "norm")

    if list(argument(node, "dim")) not in ([-1], [value(x).dim() - 1]) or not argument(node, "keepdim"):
        return refused("the mean is not over the last dim alone")
    crowded = next((part for part in (square, node, added, inverse) if only_user(part) is None), None)
    if crowded is not None:
        return refused("an inner value has other users", crowded)
    return _with_weight(_before_upcast(x), normal, epsilon)


def _squared(node: Any) -> fx.Node | None:
    """x, when `node` is x ** 2 or x * x."""
    if is_call(node, aten.pow.Tensor_Scalar) and node.args[1] == 2:
        return operands(node)[0]  # type: ignore[no-any-return]
    if is_call(node, aten.mul.Tensor) and node.args[0] is node.args[1]:
        return operands(node)[0]  # type: ignore[no-any-return]
    return operands(node)[0] if is_call(node, aten.square.default) else None


def _inverse_root(mean: fx.Node) -> tuple[fx.Node, fx.Node, float] | None:
    """The nodes of mean + epsilon and of its rsqrt or sqrt, and epsilon."""
    added = next((user for user in mean.users if is_call(user, aten.add.Tensor, aten.add.Scalar)), None)
    if added is None or argument(added, "alpha") != 1:
        return None
    epsilon = next((scalar(item) for item in added.args if item is not mean), None)
    inverse = next((user for user in added.users if _is_root(user)), None)
    return None if epsilon is None or inverse is None else (added, inverse, epsilon)


def _is_root(node: fx.Node) -> bool:
    if is_call(node, aten.pow.Tensor_Scalar):
        return node.args[1] in (-0.5, 0.5)
    return is_call(node, aten.rsqrt.default, aten.sqrt.default)


def _scales(node: fx.Node, x: fx.Node, inverse: fx.Node) -> bool:
    """Whether `node` is x * rsqrt(...) or x / sqrt(...)."""
    if is_call(inverse, aten.sqrt.default) or (is_call(inverse, aten.pow.Tensor_Scalar) and inverse.args[1] == 0.5):
        return is_call(node, aten.div.Tensor) and node.args == (x, inverse)
    return is_call(node, aten.mul.Tensor) and node.args in ((x, inverse), (inverse, x))


def _with_weight(x: fx.Node, normal: fx.Node, epsilon: float) -> _RmsNorm | Refusal:
    """The product with the weight behind `normal`, in any order with the cast back to x's dtype."""

    def refused(reason: str, at: fx.Node) -> Refusal:
        return Refusal(reason, at.name, at.name, "norm")

    cast = only_user(normal)
    back = cast if cast is not None and is_call(cast, *CASTS) else normal
    product = only_user(back)
    if product is None:
        return refused("an inner value has other users", back)
    if not is_call(product, aten.mul.Tensor):
        return refused("no weight scales the result", back)
    weight = next(item for item in product.args if item is not back) if product.args[0] is not product.args[1] else None
    if not isinstance(weight, fx.Node) or not has_tensor(weight) or value(weight).dim() != 1:
        return refused("the weight is not 1-d", product)
    if not same_size(value(weight).shape[0], value(x).shape[-1]):
        return refused("the weight has another width than x", product)
    output = product
    last = only_user(product)
    if value(output).dtype != value(x).dtype and last is not None and is_call(last, *CASTS):
        output = last
    if value(output).dtype != value(x).dtype:
        return refused("the result has another dtype than x", output)
    return _RmsNorm(x, _before_upcast(weight), epsilon, output)


def _before_upcast(node: fx.Node) -> fx.Node:
    """What was cast up to `node`, or `node` itself: the operator computes in float32 anyway."""
    source = node.args[0] if is_call(node, *CASTS) else None
    if not isinstance(source, fx.Node) or not value(source).is_floating_point():
        return node
    return source if value(source).dtype.itemsize <= value(node).dtype.itemsize else node


def _match_operator(node: fx.Node) -> _RmsNorm | Refusal:
    """aten.rms_norm(x, [width], weight, epsilon)"""
    x, weight, shape = operands(node)[0], argument(node, "weight"), argument(node, "normalized_shape")

    def refused(reason: str) -> Refusal:
        return Refusal(reason, node.name, node.name, "norm")

    if len(shape) != 1:
        return refused("the mean is not over the last dim alone")
    if weight is None:
        return refused("no weight scales the result")
    if value(node).dtype != value(x).dtype:
        return refused("the result has another dtype than x")
    epsilon = argument(node, "eps")
    return _RmsNorm(x, weight, torch.finfo(value(x).dtype).eps if epsilon is None else epsilon, node)


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [FuseRmsNorm]
