"""GraphWriter: builds one ONNX graph value by value. Translations say what to compute; it names, shares and types.

Everything is deterministic: names come from the Program's nodes; equal constants, and computations that are marked as
equal, are made once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, fx

from compiler.backends.onnx_runtime.size_expressions import size_value
from compiler.sites.names import module_path

if TYPE_CHECKING:
    from compiler.program import Program, TensorSpec

MICROSOFT = "com.microsoft"
SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Where PyTorch's exporter notes the modules around a node, and viewers and importers look for them."""
DATA_TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float64: ir.DataType.DOUBLE,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.int16: ir.DataType.INT16,
    torch.int8: ir.DataType.INT8,
    torch.uint8: ir.DataType.UINT8,
    torch.uint16: ir.DataType.UINT16,
    torch.uint32: ir.DataType.UINT32,
    torch.uint64: ir.DataType.UINT64,
    torch.float8_e4m3fn: ir.DataType.FLOAT8E4M3FN,
    torch.float8_e4m3fnuz: ir.DataType.FLOAT8E4M3FNUZ,
    torch.float8_e5m2: ir.DataType.FLOAT8E5M2,
    torch.float8_e5m2fnuz: ir.DataType.FLOAT8E5M2FNUZ,
    torch.float8_e8m0fnu: ir.DataType.FLOAT8E8M0,
    torch.bool: ir.DataType.BOOL,
}
Branch = tuple[str, Callable[[], Sequence[ir.Value]]]
"""The name of a graph of its own, and what writes it."""
UNSATURATED = (torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu)
"""What is too large for them torch makes infinite or no number; ONNX says by default the largest number."""
NOT_IN_NUMPY = (torch.bfloat16, torch.float8_e4m3fn, *UNSATURATED)


class GraphWriter:
    """The ONNX graph that grows while the nodes of a Program are translated in order."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._values: dict[fx.Node, ir.Value | tuple[ir.Value, ...]] = {}
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._shared: dict[tuple[Any, ...], Any] = {}
        self._weights: dict[str, ir.Value] = {}
        self._names = {spec.name: 0 for spec in (*program.inputs, *program.outputs)}
        self._label = ""
        self._scope: dict[str, str] = {}
        self._dim_sources: dict[str, tuple[ir.Value, int]] = {}
        self._dim_names: dict[str, str] = {}
        self.inputs = [
            self._input(spec, node) for spec, node in zip(program.inputs, program.placeholders(), strict=True)
        ]

    def begin(self, node: fx.Node) -> None:
        """Name the values that follow after `node`, and note the module it came from."""
        self._label = node.name
        path = module_path(node)
        self._scope = {SCOPES_KEY: str([path, node.name])} if path else {}

    def bind(self, node: fx.Node, result: ir.Value | tuple[ir.Value, ...]) -> None:
        """Let `result` be what `node` computes, with its dtype and shape."""
        self._values[node] = result
        held = node.meta.get("val")
        values, described = ((result,), (held,)) if isinstance(result, ir.Value) else (result, held)
        for value, one in zip(values, described or (), strict=False):
            if isinstance(one, Tensor):
                self._describe(value, one)

    def emit(self, op: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Add a node with one result. Attributes that are None are left out."""
        return self.emit_several(op, *inputs, outputs=1, domain=domain, **attributes)[0]

    def emit_several(
        self, op: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """Add a node with `outputs` results."""
        trimmed = list(inputs)
        while trimmed and trimmed[-1] is None:
            trimmed.pop()
        kept = {name: value for name, value in attributes.items() if value is not None}
        name = self._free_name(self._label or op.lower())
        suffixes = [""] if outputs == 1 else [f".{index}" for index in range(outputs)]
        made = tuple(ir.Value(name=name + suffix) for suffix in suffixes)
        self.nodes.append(
            ir.node(op, trimmed, kept, domain=domain, outputs=made, name=name, metadata_props=dict(self._scope))
        )
        return made

    @contextmanager
    def body(self) -> Iterator[list[ir.Node]]:
        """Nodes that are emitted inside go to the list: a graph of its own, which sees what was made before."""
        outside = self.nodes, self._shared, self._dim_sources, self._label, self._scope
        self.nodes, self._shared, self._dim_sources = [], dict(self._shared), dict(self._dim_sources)
        try:
            yield self.nodes
        finally:
            self.nodes, self._shared, self._dim_sources, self._label, self._scope = outside

    def body_input(self, wanted: str, held: Tensor) -> ir.Value:
        """An input, called like `wanted`, of the graph that `body` makes."""
        value = ir.Value(name=self._free_name(f"{self._label}.{wanted}"))
        self._describe(value, held)
        return value

    def body_outputs(self, values: Sequence[ir.Value], nodes: Sequence[ir.Node]) -> list[ir.Value]:
        """Values as outputs of the graph of `nodes`: each made inside it, and listed once."""
        outputs: list[ir.Value] = []
        for value in values:
            if value in outputs or value.producer() not in nodes:
                value, inner = self.emit("Identity", value), value
                value.dtype, value.shape = inner.dtype, inner.shape
            outputs.append(value)
        return outputs

    def choose(self, condition: ir.Value, outputs: int, then: Branch, otherwise: Branch) -> tuple[ir.Value, ...]:
        """What the branch that is run gives: ONNX If. Both are graphs of their own, which see what was made before."""
        branches = {"then_branch": self._branch(*then), "else_branch": self._branch(*otherwise)}
        return self.emit_several("If", condition, outputs=outputs, **branches)

    def _branch(self, name: str, make: Callable[[], Sequence[ir.Value]]) -> ir.Graph:
        with self.body() as nodes:
            outputs = self.body_outputs(make(), nodes)
            return ir.Graph([], outputs, nodes=nodes, name=name)

    def shared(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` made the first time it was asked for under `key`."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def value(self, node: fx.Node) -> ir.Value:
        """The single tensor that `node` computes. A weight becomes an initializer when it is first asked for."""
        if node.op == "get_attr":
            return self.weight(node)
        result = self._values[node]
        if isinstance(result, tuple):
            raise TypeError(f"{node} has {len(result)} results")
        return result

    def results(self, node: fx.Node) -> tuple[ir.Value, ...]:
        """All results of a node with several."""
        result = self._values[node]
        return result if isinstance(result, tuple) else (result,)

    def constant(self, value: Any, dtype: np.dtype[Any] | type | None = None) -> ir.Value:
        """An initializer; equal ones are one."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer("constant", ir.Tensor(array))
        return self._constants[key]

    def weight(self, node: fx.Node, arrange: Callable[[Tensor], Tensor] | None = None, tag: str = "") -> ir.Value:
        """The weight of a `get_attr` node, rearranged by `arrange` (called `tag`) when the file is written."""
        name = str(node.target) + (f".{tag}" if tag else "")

        def make() -> ir.Value:
            tensor = self.program.weight(node).detach()
            with torch.device("meta"):
                like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            arranged_like = arrange(like) if arrange else like
            shape, data_type = ir.Shape(arranged_like.shape), DATA_TYPES[arranged_like.dtype]

            def load() -> ir.Tensor:
                arranged = arrange(tensor) if arrange else tensor
                return TorchTensor(arranged.contiguous(), name=name)

            lazy = ir.LazyTensor(load, data_type, shape, name=name)
            return self.initializer(name, lazy)

        if name not in self._weights:
            self._weights[name] = make()
        return self._weights[name]

    def initializer(self, wanted: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A stored tensor, under `wanted` or a name like it."""
        name = self._free_name(wanted)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.initializers[name] = value
        return value

    def tensor(self, argument: Any, dtype: torch.dtype | None = None) -> ir.Value:
        """A node, number or symbolic size as a tensor, cast to `dtype` where that differs."""
        if isinstance(argument, fx.Node):
            held = argument.meta["val"]
            if isinstance(held, Tensor):
                value = self.value(argument)
                return value if dtype in (None, held.dtype) else self.cast(value, dtype)
            scalar = self.emit("Squeeze", self.size(argument), self.constant([0], np.int64))
            return scalar if dtype in (None, torch.int64) else self.cast(scalar, dtype)
        made = torch.tensor(argument, dtype=dtype)
        if made.dtype in NOT_IN_NUMPY:
            return self.cast(self.constant(made.float().numpy()), made.dtype)
        return self.constant(made.numpy())

    def cast(self, value: ir.Value, dtype: torch.dtype) -> ir.Value:
        """`value` as `dtype`."""
        saturate = 0 if dtype in UNSATURATED else None
        cast: ir.Value = self.shared(
            ("Cast", value, dtype), lambda: self.emit("Cast", value, to=int(DATA_TYPES[dtype]), saturate=saturate)
        )
        return cast

    def size(self, argument: Any) -> ir.Value:
        """One size (an int or a symbolic int) as int64[1]."""
        if isinstance(argument, fx.Node):
            return self.value(argument)
        known = known_size(argument)
        if known is not None:
            return self.constant([known], np.int64)
        return size_value(self, argument.node.expr, self._dim_value)

    def expression(self, symbolic: torch.SymInt | torch.SymFloat) -> ir.Value:
        """A symbolic number as int64[1], or float64[1]."""
        return size_value(self, symbolic.node.expr, self._dim_value)

    def sizes(self, arguments: Sequence[Any]) -> ir.Value:
        """A list of sizes as int64[n]: a constant where all are known."""
        known = [known_size(one) for one in arguments]
        if all(one is not None for one in known):
            return self.constant(known, np.int64)
        value: ir.Value = self.emit("Concat", *(self.size(one) for one in arguments), axis=0)
        return value

    def dim(self, value: ir.Value, index: int) -> ir.Value:
        """The size of dim `index` of a value, as int64[1]; taken from an input where the sizes are the same."""
        made: ir.Value = self.shared(
            ("dim", value, index), lambda: self.emit("Shape", value, start=index, end=index + 1)
        )
        return made

    def dim_of(self, node: fx.Node, index: int) -> ir.Value:
        """The size of dim `index` of what `node` computes."""
        size = node.meta["val"].shape[index]
        if known_size(size) is not None or str(size) in self._dim_sources:
            return self.size(size)
        return self.dim(self.value(node), index)

    def finish(self) -> ir.Graph:
        """The graph with the Program's outputs under their names."""
        returned = self.program.output_node().args[0]
        assert isinstance(returned, (tuple, list))
        outputs: list[ir.Value] = []
        for spec, node in zip(self.program.outputs, returned, strict=True):
            self._label = spec.name
            value = self.value(node)
            named_already = value.is_graph_input() or value in outputs or value.name in self.initializers
            if named_already or value.producer() is None:
                value = self.emit("Identity", value)
            value.name = spec.name
            value.dtype = DATA_TYPES[getattr(torch, spec.dtype)]
            value.shape = ir.Shape([size if isinstance(size, int) else size.name for size in spec.shape])
            outputs.append(value)
        return ir.Graph(
            self.inputs, outputs, nodes=self.nodes, initializers=list(self.initializers.values()), name="program"
        )

    def _dim_value(self, symbol: str) -> ir.Value | None:
        source = self._dim_sources.get(symbol)
        return None if source is None else self.dim(*source)

    def _input(self, spec: TensorSpec, node: fx.Node) -> ir.Value:
        shape = ir.Shape([size if isinstance(size, int) else size.name for size in spec.shape])
        value = ir.Value(name=spec.name, shape=shape, type=ir.TensorType(DATA_TYPES[getattr(torch, spec.dtype)]))
        for index, (size, named) in enumerate(zip(node.meta["val"].shape, spec.shape, strict=True)):
            if known_size(size) is None:
                self._dim_sources.setdefault(str(size), (value, index))
                self._dim_names.setdefault(str(size), str(named))
        self._values[node] = value
        return value

    def _describe(self, value: ir.Value, held: Tensor) -> None:
        if value.dtype is None and held.dtype in DATA_TYPES:
            value.dtype = DATA_TYPES[held.dtype]
        if value.shape is None:
            value.shape = ir.Shape(
                [size if (size := known_size(one)) is not None else self._dim_names.get(str(one)) for one in held.shape]
            )
        for index, size in enumerate(held.shape):
            if known_size(size) is None and str(size).isidentifier():  # a size that values decide is seen here first
                self._dim_sources.setdefault(str(size), (value, index))

    def _free_name(self, wanted: str) -> str:
        count = self._names.get(wanted)
        if count is None:
            self._names[wanted] = 0
            return wanted
        self._names[wanted] = count + 1
        return self._free_name(f"{wanted}_{count + 1}")


def known_size(size: Any) -> int | None:
    """The int behind a size, or None where it is symbolic."""
    if isinstance(size, fx.Node):
        size = size.meta["val"]
    if isinstance(size, torch.SymInt):
        known: int | None = size.node.maybe_as_int()
        return known
    return int(size)


def same_size(left: Any, right: Any) -> bool:
    """Whether two sizes are equal whatever the dynamic dims are."""
    known = known_size(left), known_size(right)
    return str(left) == str(right) if known == (None, None) else known[0] == known[1]
