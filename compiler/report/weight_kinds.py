"""Where a Program's bytes are: in linear layers, embeddings, convolutions, norms or elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from compiler.patterns import has_tensor
from compiler.program_text import operator_name

if TYPE_CHECKING:
    from compiler.program import Program

KINDS = ("linear", "embedding", "convolution", "norm", "other")
WORDS = {
    "embedding": "embedding",
    "linear": "linear",
    "matmul": "linear",
    "mm": "linear",
    "conv": "convolution",
    "norm": "norm",
}
"""A word in an operator's name -> the kind of what it reads. The first that fits decides."""

SEARCH_DEPTH = 6
"""Casts, transposes, reshapes and scalings that may stand between a weight and the operator that it belongs to."""


def weight_bytes_by_kind(program: Program) -> dict[str, int]:
    """Bytes by kind, each stored tensor once, under the first operator that reads it. Empty kinds are left out."""
    sizes = dict.fromkeys(KINDS, 0)
    seen: set[int] = set()
    for node in program.graph.nodes:
        if node.op != "get_attr" or not has_tensor(node):
            continue
        tensor = program.weight(node)
        if id(tensor) not in seen:
            seen.add(id(tensor))
            sizes[_kind(node)] += tensor.numel() * tensor.element_size()
    return {kind: size for kind, size in sizes.items() if size}


def _kind(node: fx.Node) -> str:
    near = [node]
    for _ in range(SEARCH_DEPTH):
        near = [user for one in near for user in one.users if user.op == "call_function"]
        for user in near:
            for word, kind in WORDS.items():
                if word in operator_name(user):
                    return kind
    return "other"
