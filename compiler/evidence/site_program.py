"""One site, or what stands in for it, cut out of a Program as a Program of its own: to be lowered and measured alone.

inputs   the activations that the site reads, of fixed sizes; numbers drawn at random, as sizes are what counts
output   the site's
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from compiler.frontends.torch_export import capture
from compiler.patterns import has_tensor, in_graph_order, is_weight, upstream
from compiler.program_text import symbol_names

if TYPE_CHECKING:
    from compiler.program import Program
    from compiler.sites import Site

ENTRY = "site"


@dataclass(frozen=True)
class InputShape:
    """What an input is like; `limit` bounds the integers in it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    limit: int

    def drawn(self) -> Tensor:
        """A tensor like it, always the same."""
        generator = torch.Generator().manual_seed(0)
        if self.dtype.is_floating_point:
            return torch.randn(self.shape, generator=generator).to(self.dtype)
        if self.dtype == torch.bool:
            return torch.ones(self.shape, dtype=torch.bool)
        return torch.randint(0, self.limit, self.shape, generator=generator, dtype=self.dtype)


@dataclass(frozen=True)
class SiteProgram:
    """A site at fixed sizes: its own nodes as a graph, and what they read.

    The first inputs are those that a stand-in takes, in order; the graph may read more of the Program around it.
    """

    name: str
    graph: fx.GraphModule
    shapes: tuple[InputShape, ...]
    activation_count: int

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Normal floats, indices below the vocabulary, true masks."""
        return {f"input_{index}": one.drawn() for index, one in enumerate(self.shapes)}

    def original(self) -> Program:
        """The site as it is."""
        return capture(self.graph, self.inputs, source=self.name, dynamic={}, output_names=[ENTRY])

    def replaced(self, stand_in: nn.Module) -> Program:
        """What stands in for it."""
        inputs = dict(list(self.inputs.items())[: self.activation_count])
        return capture(stand_in, inputs, source=self.name, dynamic={}, output_names=[ENTRY])


def token_sizes(program: Program, tokens: int) -> dict[str, int]:
    """Sizes of the symbolic dims for so many tokens at once: samples where a model reads no tokens; all others 1.

    Dims that count tokens are those of sequences, or else the first one. Sizes keep to what the dims allow.
    """
    dims = program.dimensions
    counted = [name for name in dims if "sequence" in name] or list(dims)[:1]
    return {name: dim.range.nearest(tokens if name in counted else 1) for name, dim in dims.items()}


def site_program(program: Program, site: Site, sizes: Mapping[str, int]) -> SiteProgram:
    """Cut `site` out of `program`, with these sizes of the Program's symbolic dims. `program` stays as it is."""
    symbols = {symbol: sizes[name] for symbol, name in symbol_names(program).items() if name in sizes}
    leaves = [*dict.fromkeys(site.inputs)]
    inside = {*site.nodes, *leaves}

    def is_read(node: fx.Node) -> bool:
        is_size = _size_of(node, symbols) is not None
        return is_size or node in leaves or (node not in inside and _is_activation(node, symbols))

    kept = set(upstream(site.output, is_read))
    leaves += in_graph_order(one for one in kept - inside if _is_activation(one, symbols))
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    for index, leaf in enumerate(leaves):
        copies[leaf] = graph.placeholder(f"input_{index}")
    for node in in_graph_order(kept):
        if node not in copies:
            size = _size_of(node, symbols)
            copies[node] = graph.node_copy(node, copies.__getitem__) if size is None else size
    graph.output(copies[site.output])
    module = fx.GraphModule(program.graph_module, graph, class_name="Site")
    limit = int(site.bindings.get("vocabulary_size") or 1)
    shapes = tuple(_input_shape(leaf, symbols, limit) for leaf in leaves)
    return SiteProgram(site.name, module, shapes, len(dict.fromkeys(site.inputs)))


def _is_activation(node: fx.Node, symbols: Mapping[str, int]) -> bool:
    """Whether a node outside a site depends on what the Program is given, and not on stored weights and sizes alone."""
    if not has_tensor(node):
        return False
    stop = upstream(node, lambda one: is_weight(one) or _size_of(one, symbols) is not None)
    return any(one.op == "placeholder" for one in stop)


def _size_of(node: fx.Node, symbols: Mapping[str, int]) -> Any:
    """The number that a node with a symbolic size stands for; None of any other node."""
    value = node.meta.get("val")
    return _known(value, symbols) if isinstance(value, torch.SymInt) else None


def _known(size: int | torch.SymInt, symbols: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs({one: symbols.get(str(one), 1) for one in expression.free_symbols}))


def _input_shape(node: fx.Node, symbols: Mapping[str, int], limit: int) -> InputShape:
    value = node.meta["val"]
    return InputShape(tuple(_known(size, symbols) for size in value.shape), value.dtype, limit)
