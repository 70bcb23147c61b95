"""Computes symbolic shapes and dtypes after edits, and only those that the edits can have changed.

A node is computed again when it is new, when its operator or arguments are not those of the last time, or when a value
that it reads has changed its shape, dtype, strides or device. On a 6-layer encoder that is a tenth of the nodes after a
typical rewrite, and computing one takes a few milliseconds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from compiler.regions import region_operands, regions_of, runs_regions

PROVENANCE = "propagated_from"
"""Key of a node's meta: what its value was computed from."""


def propagate_values(graph_module: fx.GraphModule) -> None:
    """Bring every `meta["val"]` up to date. The placeholders' are taken as given and must be fake tensors."""
    values = [node.meta["val"] for node in graph_module.graph.nodes if node.op == "placeholder"]
    with torch.no_grad(), enable_python_dispatcher():
        _IncrementalProp(graph_module, _fake_mode(graph_module, values)).propagate_dont_convert_inputs(*values)


def _fake_mode(graph_module: fx.GraphModule, values: list[Any]) -> FakeTensorMode:
    """The mode of the placeholders; in a graph without any, that of the values it has, or a new one."""
    if not values:
        values = [node.meta.get("val") for node in graph_module.graph.nodes]
        return next((mode for value in values if (mode := getattr(value, "fake_mode", None))), FakeTensorMode())
    modes: list[FakeTensorMode] = [value.fake_mode for value in values if hasattr(value, "fake_mode")]
    if not modes:
        raise ValueError("the placeholders' meta['val'] must be fake tensors")
    return modes[0]


def mark_current(graph_module: fx.GraphModule) -> None:
    """Take every `meta["val"]` as it stands for up to date, as after tracing."""
    for node in graph_module.graph.nodes:
        if "val" in node.meta and node.op != "call_module":
            node.meta[PROVENANCE] = _provenance(node, graph_module)


class _IncrementalProp(FakeTensorProp):
    """Runs only the nodes whose values may have changed."""

    def __init__(self, module: fx.GraphModule, mode: Any) -> None:
        super().__init__(module, mode)
        self._changed: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        """The value of `n`: the one it has where that is current, otherwise computed."""
        if n.op in ("placeholder", "output"):
            return super().run_node(n)
        provenance = _provenance(n, self.module)
        if runs_regions(n):
            self._propagate_regions(n)
        current = n.op != "call_module" and n.meta.get(PROVENANCE) == provenance
        if current and not any(read in self._changed for read in n.all_input_nodes):
            return n.meta["val"]
        before = _signature(n.meta.get("val"))
        result = super().run_node(n)
        if _signature(n.meta.get("val")) != before:
            self._changed.add(n)
        if "val" in n.meta:
            n.meta[PROVENANCE] = provenance
        return result

    def _propagate_regions(self, node: fx.Node) -> None:
        operands = [one.meta["val"] if isinstance(one, fx.Node) else one for one in region_operands(node)]
        for region in regions_of(self.module, node):
            for placeholder, value in zip(region.graph.find_nodes(op="placeholder"), operands, strict=True):
                placeholder.meta["val"] = value
            _IncrementalProp(region, self._mode).propagate_dont_convert_inputs(*operands)


def _provenance(node: fx.Node, module: Any) -> tuple[Any, ...]:
    if node.op == "get_attr":
        weight: Any = module
        for part in str(node.target).split("."):
            weight = getattr(weight, part)
        return (node.target, _signature(weight) if isinstance(weight, Tensor) else id(weight))
    return (node.target, str(node.args), str(node.kwargs))


def _signature(value: Any) -> Any:
    """What readers of a value see of it: sizes by symbol, strides, dtype and device."""
    if isinstance(value, Tensor):
        return (str(tuple(value.shape)), str(value.stride()), value.dtype, value.device)
    if isinstance(value, (tuple, list)):
        return tuple(_signature(item) for item in value)
    return str(value)
