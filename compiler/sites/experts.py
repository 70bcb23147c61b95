"""Products of tokens with the weights of the experts that a router chose, as mixture-of-experts layers write them.

grouped     tokens sorted by expert, one product for every run of rows: grouped_mm(tokens, weight, ends)
gathered    every token with a copy of its expert's weight: (weight[ids] @ tokens[:, :, None])[:, :, 0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from compiler.patterns import argument, aten, is_call, is_weight, only_user, operands, permutation, value

GROUPED_PRODUCTS = frozenset({"transformers.grouped_mm_fallback.default", "aten._grouped_mm.default"})


@dataclass(frozen=True)
class ExpertsProduct:
    """One product: tokens [rows, in], the weight given to it [experts, ., .], and how rows find their expert.

    `routed_by` is "ends" where `routing` says where the rows of each expert end [experts], "ids" where it names the
    expert of each row [rows].
    """

    tokens: fx.Node
    weight: fx.Node
    routing: fx.Node
    routed_by: str
    nodes: tuple[fx.Node, ...]

    @property
    def stored_weight(self) -> fx.Node | None:
        """The stored weight [experts, out, in], transposed on the way or not; None where it is computed."""
        source = operands(self.weight)[0] if permutation(self.weight) is not None else self.weight
        return source if isinstance(source, fx.Node) and source.op == "get_attr" else None

    @property
    def weight_transposed(self) -> bool:
        """Whether the weight is stored as [experts, in, out]."""
        return self.routed_by == "ends" and permutation(self.weight) is None


def read_experts_product(node: Any) -> ExpertsProduct | None:
    """The product whose result is `node`, or None."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    if str(node.target) in GROUPED_PRODUCTS:
        tokens, weight, ends = operands(node)[:3]
        return ExpertsProduct(tokens, weight, ends, "ends", (node,))
    return _gathered(node) if is_call(node, aten.squeeze.dim) else None


def _gathered(node: fx.Node) -> ExpertsProduct | None:
    product = operands(node)[0]
    if not is_call(product, aten.matmul.default, aten.bmm.default) or value(product).dim() != 3:
        return None
    gathered, column = operands(product)
    columns = is_call(column, aten.unsqueeze.default) and argument(column, "dim") in (-1, 2)
    if not columns or argument(node, "dim") not in (-1, 2) or not is_call(gathered, aten.index.Tensor):
        return None
    weight, indices = operands(gathered)
    inner = (gathered, column, product)
    if not is_weight(weight) or len(indices) != 1 or any(only_user(one) is None for one in inner):
        return None
    return ExpertsProduct(operands(column)[0], weight, indices[0], "ids", (*inner, node))
