"""A Program's graph to send gradients through: stored weights are fixed, and linear layers are modules of their own.

    linear(x, W, b)  ->  FrozenLinear(x)         W in bfloat16 where that is faster, x and the result as they were
                     ->  with a LowRank change:  x @ W.T + b + (x @ down.T) @ up.T

Nodes keep their names, so that those of a Program are found again. Source of the change: Hu et al. 2021,
arXiv:2106.09685, section 4.1; `up` starts at zero, so that nothing changes before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from compiler.patterns import argument, aten, drop_dead_code, is_call, is_weight, permutation

if TYPE_CHECKING:
    from compiler.program import Program


class LowRank(nn.Module):
    """The change up @ down to a weight [out, in], of a rank."""

    def __init__(self, in_features: int, out_features: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        drawn = torch.randn(rank, in_features, generator=generator) * in_features**-0.5
        self.down = nn.Parameter(drawn)
        self.up = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return nn.functional.linear(nn.functional.linear(x, self.down), self.up)

    @torch.no_grad()
    def merged(self, weight: Tensor, *, transposed: bool) -> Tensor:
        """The weight with the change in it, stored as it was: [out, in], or [in, out] where `transposed`."""
        change = self.up @ self.down
        return (weight.float() + (change.T if transposed else change)).to(weight.dtype)


class FrozenLinear(nn.Module):
    """x @ weight.T + bias in the dtype of the weight, given in that of x; with a change where there is one."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, change: LowRank | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        if x.dtype == self.weight.dtype:
            y = nn.functional.linear(x, self.weight, self.bias)
        else:
            y = nn.functional.linear(x.to(self.weight.dtype), self.weight).to(x.dtype)
            y = y if self.bias is None else y + self.bias
        return y if self.change is None else y + self.change(x)


class WeightForms:
    """Weights [out, in] of linear layers as they are read while training, each made once for all graphs."""

    def __init__(self, *, half: bool) -> None:
        self.half = half
        self._made: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}

    def form(self, stored: Tensor, *, transposed: bool) -> Tensor:
        """A weight as a graph of this form reads it."""
        key = id(stored), transposed
        if key not in self._made:
            wanted = torch.bfloat16 if self.half and stored.dtype == torch.float32 else stored.dtype
            weight = stored.detach().T if transposed else stored.detach()
            self._made[key] = stored, weight.to(wanted).contiguous()
        return self._made[key][1]


def frozen_graph(program: Program, forms: WeightForms, changes: Mapping[str, LowRank] | None = None) -> fx.GraphModule:
    """A copy of the graph of `program` in which only the modules of grafts, and `changes` by weight name, can learn."""
    copy = program.copy()
    module = copy.graph_module
    for index, node in enumerate(list(copy.graph.find_nodes(op="call_function", target=aten.linear.default))):
        read = linear_weight(node)
        bias = argument(node, "bias")
        if read is None or not (bias is None or is_weight(bias)):
            continue
        name, transposed = read
        linear = FrozenLinear(
            forms.form(program.weight(name), transposed=transposed),
            None if bias is None else program.weight(bias).detach(),
            (changes or {}).get(name),
        )
        path = copy.free_name(f"frozen_linear_{index}")
        module.add_submodule(path, linear)
        x = argument(node, "input")
        node.op, node.target, node.args, node.kwargs = "call_module", path, (x,), {}
    drop_dead_code(copy.graph)
    for node in copy.graph.find_nodes(op="get_attr"):
        if is_weight(node):
            copy.set_weight(str(node.target), program.weight(node), trainable=False)
    copy.tidy()
    return module


def linear_weight(node: fx.Node) -> tuple[str, bool] | None:
    """Name of the stored weight that a linear node reads, and whether it is transposed on the way; None if computed."""
    if not is_call(node, aten.linear.default):
        return None
    read: Any = argument(node, "weight")
    transposed = permutation(read) == (1, 0)
    stored: Any = read.args[0] if transposed else read
    return (str(stored.target), transposed) if is_weight(stored) else None


def head_of(module: fx.GraphModule, output: int) -> tuple[fx.Node, FrozenLinear | None]:
    """What is to be read of output `output`: the input of the unchanged linear layer that gives it, and that layer;
    or the output itself.
    """
    (returned,) = module.graph.output_node().args
    node: Any = returned[output]  # type: ignore[index]
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        if isinstance(layer, FrozenLinear) and layer.change is None:
            return node.args[0], layer
    return node, None


def return_only(module: fx.GraphModule, nodes: tuple[fx.Node, ...]) -> None:
    """Let a graph return these nodes alone."""
    module.graph.output_node().args = (nodes,)
    drop_dead_code(module.graph)
    module.recompile()
