"""What stands around an ONNX node while it is read: its versions, its element types, its subgraphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from compiler.errors import CompilerError
from compiler.frontends.onnx_model.operator_table import ONNX_DOMAINS

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.frontends.onnx_model.interpreter import Environment, OnnxModule


class ValueNeededError(CompilerError):
    """An operator needs the numbers of a value that only running the model gives. `value` is the ONNX value."""

    def __init__(self, doing: str, value: ir.Value, what: str, node: str) -> None:
        problem = f"{what} is {value.name!r}, which is known only when the model runs"
        hint = "Shapes and axes must be known while the model is read."
        super().__init__(doing, problem, hint, node)
        self.value = value

    @classmethod
    def of(cls, node: NodeContext, index: int, what: str) -> ValueNeededError:
        """The error for an input of `node`."""
        value = node.node.inputs[index]
        assert value is not None
        return cls(node.module.doing, value, what, node.label)


class NodeContext:
    """A node, and the module and values it is read with."""

    def __init__(self, module: OnnxModule, node: ir.Node, environment: Environment) -> None:
        self.module = module
        self.node = node
        self.environment = environment

    @property
    def version(self) -> int:
        """The opset version of the node's domain."""
        return self.module.version(self.node.domain)

    @property
    def output_count(self) -> int:
        """How many outputs the node lists, left-out ones among them."""
        return len(self.node.outputs)

    def has_output(self, index: int) -> bool:
        """Whether the node gives that output a name: others need not be computed."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index].name)

    def input_type(self, index: int) -> ir.DataType | None:
        """The ONNX element type of an input where it can be told, which a tensor's dtype alone does not for int4."""
        if index >= len(self.node.inputs):
            return None
        value = self.node.inputs[index]
        return None if value is None else element_type(value)

    def output_type(self, index: int = 0) -> ir.DataType | None:
        """The ONNX element type of an output where the model states it or it can be told."""
        return element_type(self.node.outputs[index]) if self.has_output(index) else None

    def tensor(self, value: Any) -> Tensor:
        """A value as a tensor; one that the module keeps is that weight."""
        return self.module.tensor(value)

    def needed(self, index: int, what: str) -> ValueNeededError:
        """The error for an input whose numbers must be known and are not."""
        return ValueNeededError.of(self, index, what)

    @property
    def label(self) -> str:
        """The node's name, or that of its first output."""
        return self.module.node_name(self.node)

    def refuse(self, problem: str, hint: str) -> CompilerError:
        """The error for a form of this operator that is not read."""
        return CompilerError(
            self.module.doing, f"{self.node.op_type}: {problem}", hint, self.module.node_name(self.node)
        )

    def run_subgraph(
        self,
        graph: ir.Graph,
        inputs: Sequence[Any],
        values: Mapping[ir.Value, Any] = MappingProxyType({}),
        weights: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> list[Any]:
        """The values of a subgraph's outputs for values of its inputs; it sees the values around the node.

        `values` and `weights` (by dotted name) stand in for some of those.
        """
        return self.module.run_graph(graph, inputs, self.environment, values, weights)


def subgraphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    """The graphs that an attribute holds."""
    if attribute.type.name == "GRAPH":
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type.name == "GRAPHS" else []


FOLLOWS_FIRST_INPUT = frozenset(
    [
        "Identity",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Gather",
        "Concat",
        "Split",
        "Expand",
        "Tile",
        "Pad",
        "Loop",
        "If",
        "MaxPool",
        "Relu",
        "Where",
    ]
)
TYPED_BY_ATTRIBUTE = {"Cast": "to", "QuantizeLinear": "output_dtype", "EyeLike": "dtype"}


def element_type(value: ir.Value) -> ir.DataType | None:
    """The ONNX element type of a value: stated, or told from the node that makes it."""
    import onnx_ir as ir

    while value is not None:
        if value.dtype is not None and value.dtype != ir.DataType.UNDEFINED:
            return value.dtype
        node = value.producer()
        if node is None:
            return None
        attribute = node.attributes.get(TYPED_BY_ATTRIBUTE.get(node.op_type, ""))
        if attribute is not None and attribute.as_int():
            return ir.DataType(attribute.as_int())
        if node.op_type in ("QuantizeLinear", "CastLike") and len(node.inputs) > 1:
            value = node.inputs[-1]
        elif node.op_type in FOLLOWS_FIRST_INPUT and node.inputs:
            value = node.inputs[0]
        else:
            return None
    return None


def operator_label(node: ir.Node) -> str:
    """`Relu`, or `com.microsoft.FusedConv` with the domain where that is not ONNX's own."""
    return node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}.{node.op_type}"


def node_name(node: ir.Node) -> str:
    """The node's name, or that of its first output."""
    named = (value.name for value in node.outputs if value.name)
    return str(node.name or next(named, node.op_type))
