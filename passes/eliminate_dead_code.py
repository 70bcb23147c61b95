"""Drop operators and weights that no output needs.

Before:  y = linear(x, W);  z = linear(x, V);  return y
After:   y = linear(x, W);  return y                          V is gone as well
Shapes:  those of the outputs stay; inputs stay even when nothing reads them.
Exact:   bit for bit.
Refuses: to drop what writes to a tensor in place, draws random numbers or checks a condition.
Source:  the usual definition; Aho, Lam, Sethi and Ullman 2006, section 9.1.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.hookspecs import hookimpl
from compiler.program import Program
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite


@dataclass(frozen=True)
class EliminateDeadCode(Rewrite):
    """Drop operators and weights that no output needs."""

    name: ClassVar[str] = "eliminate-dead-code"
    family: ClassVar[str | None] = "simplify"

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite in place. `changed` names the nodes that went."""
        before = [node.name for node in program.graph.nodes]
        program.graph.eliminate_dead_code()
        kept = {node.name for node in program.graph.nodes}
        dropped = tuple(name for name in before if name not in kept)
        if dropped:
            program.refresh()
        return PassResult(changed=dropped)


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [EliminateDeadCode]
