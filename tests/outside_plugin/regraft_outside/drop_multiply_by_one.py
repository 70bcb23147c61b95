"""x * 1  ->  x

Before:  mul(x, 1)      After:  x
Shapes:  any; x keeps its dtype.
Exact:   bit for bit.
Refuses: a factor that is a tensor or not 1; a product that is of another dtype than x.
Source:  arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from compiler.program import Program
from compiler.rewriting import PassContext, PassResult, Rewrite


@dataclass(frozen=True)
class DropMultiplyByOne(Rewrite):
    """Takes out products that change nothing."""

    name: ClassVar[str] = "drop-multiply-by-one"

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        changed = []
        for node in list(program.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor)):
            if changes_nothing(node):
                node.replace_all_uses_with(node.args[0])
                program.graph.erase_node(node)
                changed.append(node.name)
        return PassResult(changed=tuple(changed))


def changes_nothing(node: fx.Node) -> bool:
    """Whether the node multiplies by the number 1 and keeps the dtype."""
    x, factor = node.args
    if not isinstance(x, fx.Node) or isinstance(factor, (fx.Node, bool)) or factor != 1:
        return False
    return bool(node.meta["val"].dtype == x.meta["val"].dtype)
