"""0.5 * x * (1 + erf(x / sqrt(2)))  ->  gelu(x)          0.5 * x * (1 + tanh(...))  ->  gelu(x, approximate="tanh")

Before:  div -> erf -> add -> mul -> mul, with the factors in any order and place              After:  gelu
         tanh of sqrt(2 / pi) * (x + 0.044715 * x ** 3), written as a power, as products or factored
Shapes:  x and the result [...], unchanged.
Exact up to rounding: 1e-6 in float32, 1e-2 in bfloat16.
Refuses: other constants; an inner value with other users; x * sigmoid(1.702 * x), which is another function, off by up
         to 0.02.
Source:  Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from compiler.hookspecs import hookimpl
from compiler.patterns import aten, has_tensor, insert_call, is_call, only_user, replace, same_shape, scalar
from compiler.program import Program
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal

PRODUCTS = frozenset({aten.mul.Tensor, aten.mul.Scalar})
SUMS = frozenset({aten.add.Tensor, aten.add.Scalar})
QUOTIENTS = frozenset({aten.div.Tensor, aten.div.Scalar})
ERF_ARGUMENT = {1: math.sqrt(0.5)}
TANH_ARGUMENT = {1: math.sqrt(2 / math.pi), 3: math.sqrt(2 / math.pi) * 0.044715}
QUICK = 1.702
PRECISION = 1e-6
"""Relative; models write the constants with 8 digits or more."""

Polynomial = dict[int, float]
"""Degree of x -> coefficient."""


@dataclass(frozen=True)
class FuseGelu(Rewrite):
    """0.5 * x * (1 + erf(x / sqrt(2)))  ->  gelu(x), and the tanh form."""

    name: ClassVar[str] = "fuse-gelu"
    family: ClassVar[str | None] = "fuse"

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite in place. `changed` names the nodes whose values gelu computes now."""
        changed: list[str] = []
        refusals: list[Refusal] = []
        for node in list(program.graph.nodes):
            found = None if node._erased else _match(node)
            if isinstance(found, Refusal):
                refusals.append(found)
            elif found is not None:
                x, output, approximate = found
                named: dict[str, Any] = {"approximate": approximate} if approximate != "none" else {}
                fused = insert_call(output, aten.gelu.default, x, **named)
                changed.append(output.name)
                replace(output, fused)
        if changed:
            program.refresh()
        return PassResult(changed=tuple(changed), refusals=tuple(refusals))


def _match(node: fx.Node) -> tuple[fx.Node, fx.Node, str] | Refusal | None:
    """x, the node that is gelu(x), and the form, when `node` is the erf or tanh in one."""
    if is_call(node, aten.sigmoid.default):
        return _quick_gelu(node)
    if not is_call(node, aten.erf.default, aten.tanh.default):
        return None
    added = only_user(node)
    if added is None or not is_call(added, *SUMS) or _number_beside(added, node) != 1:
        return None
    product = _half_of_x_times(added)
    if product is None:
        return None
    x, output = product
    form, wanted = ("none", ERF_ARGUMENT) if is_call(node, aten.erf.default) else ("tanh", TANH_ARGUMENT)
    inside: list[fx.Node] = []
    argument = _polynomial(node.args[0], x, inside)
    if argument is None or not _is_near(argument, wanted):
        return Refusal("the constants are not those of GELU", node.name, node.name, "gelu")
    crowded = next((part for part in inside if not _is_read_only_inside(part, {*inside, node})), None)
    if crowded is not None:
        return Refusal("an inner value has other users", crowded.name, output.name, "gelu")
    return x, output, form


def _quick_gelu(node: fx.Node) -> Refusal | None:
    scaled = node.args[0]
    if not isinstance(scaled, fx.Node) or not is_call(scaled, *PRODUCTS):
        return None
    x = next((item for item in scaled.args if isinstance(item, fx.Node) and has_tensor(item)), None)
    product = only_user(node)
    if x is None or product is None or not is_call(product, aten.mul.Tensor) or x not in product.args:
        return None
    factor = _number_beside(scaled, x)
    if factor is None or not math.isclose(factor, QUICK, rel_tol=1e-3):
        return None
    return Refusal("x * sigmoid(1.702 * x) is another function, off by up to 0.02", node.name, product.name, "gelu")


def _half_of_x_times(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """x and the product, when the single users of `node` multiply it to 0.5 * x * node."""
    factor, x = 1.0, None
    while x is None or not math.isclose(factor, 0.5, rel_tol=PRECISION):
        product = only_user(node)
        if product is None or not is_call(product, *PRODUCTS, *QUOTIENTS):
            return None
        number = _number_beside(product, node)
        if number is not None:
            if is_call(product, *QUOTIENTS) and (product.args[0] is not node or number == 0):
                return None
            factor = factor / number if is_call(product, *QUOTIENTS) else factor * number
        elif x is None and is_call(product, aten.mul.Tensor) and product.args[0] is not product.args[1]:
            other = next(item for item in product.args if item is not node)
            assert isinstance(other, fx.Node)
            x, share = _without_factor(other, product)
            factor *= share
        else:
            return None
        node = product
    return (x, node) if same_shape(x, node) else None


def _without_factor(node: fx.Node, product: fx.Node) -> tuple[fx.Node, float]:
    """x and 0.5, when `node` is 0.5 * x and only the product reads it; otherwise the node itself and 1."""
    if only_user(node) is product and is_call(node, *PRODUCTS, *QUOTIENTS):
        source = next((item for item in node.args if isinstance(item, fx.Node) and scalar(item) is None), None)
        number = None if source is None else _number_beside(node, source)
        if source is not None and number and (is_call(node, *PRODUCTS) or node.args[0] is source):
            share = number if is_call(node, *PRODUCTS) else 1 / number
            if math.isclose(share, 0.5, rel_tol=PRECISION):
                return source, share
    return node, 1.0


def _polynomial(item: Any, x: fx.Node, inside: list[fx.Node]) -> Polynomial | None:
    """`item` as a polynomial in x, or None when it is none. The nodes between are added to `inside`."""
    if item is x:
        return {1: 1.0}
    number = scalar(item)
    if number is not None:
        return {0: number}
    if not isinstance(item, fx.Node) or not is_call(item, *PRODUCTS, *SUMS, *QUOTIENTS, aten.pow.Tensor_Scalar):
        return None
    inside.append(item)
    left = _polynomial(item.args[0], x, inside)
    if left is None:
        return None
    if is_call(item, aten.pow.Tensor_Scalar):
        return _power(left, item.args[1])
    right = _polynomial(item.args[1], x, inside)
    if right is None or item.kwargs:
        return None
    if is_call(item, *SUMS):
        return {degree: left.get(degree, 0.0) + right.get(degree, 0.0) for degree in {*left, *right}}
    if is_call(item, *QUOTIENTS):
        return {degree: c / right[0] for degree, c in left.items()} if set(right) == {0} and right[0] else None
    return _times(left, right)


def _times(left: Polynomial, right: Polynomial) -> Polynomial:
    result: Polynomial = {}
    for degree, coefficient in left.items():
        for other, factor in right.items():
            result[degree + other] = result.get(degree + other, 0.0) + coefficient * factor
    return result


def _power(base: Polynomial, exponent: Any) -> Polynomial | None:
    if exponent not in (1, 2, 3):
        return None
    result = base
    for _ in range(int(exponent) - 1):
        result = _times(result, base)
    return result


def _is_near(found: Polynomial, wanted: Polynomial) -> bool:
    return set(found) == set(wanted) and all(
        math.isclose(found[degree], wanted[degree], rel_tol=PRECISION) for degree in wanted
    )


def _is_read_only_inside(node: fx.Node, inside: set[fx.Node]) -> bool:
    return all(user in inside for user in node.users)


def _number_beside(node: fx.Node, operand: fx.Node) -> float | None:
    """The number that a sum, product or quotient of two holds beside `operand`."""
    if node.kwargs or len(node.args) != 2:
        return None
    others = [item for item in node.args if item is not operand]
    return scalar(others[0]) if len(others) == 1 else None


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [FuseGelu]
