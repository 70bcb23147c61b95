"""OnnxModule: an nn.Module that runs an ONNX graph through the table of operators. Tracing it gives the Program.

Weights are the module's parameters and buffers under the names of the initializers. Every operator that tracing
records says in its meta which ONNX node it came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import traceback

from compiler.errors import CompilerError
from compiler.frontends.onnx_model.element_types import tensor_from_numpy
from compiler.frontends.onnx_model.graph_inputs import GraphInputs
from compiler.frontends.onnx_model.known import LARGEST_FOLDED, Known
from compiler.frontends.onnx_model.node_context import NodeContext, node_name, operator_label, subgraphs
from compiler.frontends.onnx_model.operator_table import (
    KNOWN_TABLE,
    ONNX_DOMAINS,
    Operand,
    Operator,
    attribute_parameter,
    find_for,
    opset_versions,
    wants,
)
from compiler.frontends.onnx_model.scope_names import scope_path
from compiler.frontends.onnx_model.unread_operators import every_node
from compiler.frontends.onnx_model.values import names_of
from compiler.frontends.onnx_model.weights import add_weights
from compiler.frontends.torch_export import SCOPE
from compiler.frontends.traced_module import first_line

if TYPE_CHECKING:
    import onnx_ir as ir

NOT_FOLDED = frozenset(
    [
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Dropout",
        "If",
        "Loop",
        "Scan",
    ]
)
"""Never computed while reading: quantized weights are to stay so, and random numbers are drawn at run time."""


class Environment:
    """The values at a point of a graph, seen together with those of the graphs around it."""

    def __init__(self, outer: Environment | None = None) -> None:
        self.outer = outer
        self.values: dict[ir.Value, Any] = {}

    def __getitem__(self, value: ir.Value) -> Any:
        scope: Environment | None = self
        while scope is not None:
            if value in scope.values:
                return scope.values[value]
            scope = scope.outer
        raise KeyError(value.name)

    def __setitem__(self, value: ir.Value, held: Any) -> None:
        self.values[value] = held

    def __contains__(self, value: object) -> bool:
        return value in self.values or (self.outer is not None and value in self.outer)


class OnnxModule(nn.Module):
    """Runs `model`'s graph. `fixed` are inputs, by name, that are numbers instead of arguments.

    Takes the other inputs as tensors, in the graph's order, and returns a tuple of tensors, called `output_names`.
    `examples` say of inputs that are sequences or optionals what they hold.
    """

    def __init__(
        self,
        model: ir.Model,
        doing: str,
        fixed: Mapping[str, Tensor] | None = None,
        examples: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.doing = doing
        self.source_model = model
        self.fixed = dict(fixed or {})
        self._constants: dict[ir.Value, Known] = {}
        self._last_reads: dict[ir.Graph, dict[ir.Node, list[ir.Value]]] = {}
        self._attributes: dict[ir.Node, dict[str, Any]] = {}
        self._stand_ins: dict[str, Tensor] = {}
        self.notes: set[str] = set()  # export puts lists and dicts back to what they were before tracing
        self.operators_in_loops = 0
        self.output_names: list[str] = []
        self._inputs = GraphInputs(doing, model.graph, self.fixed, examples or {})
        self._versions = opset_versions(model)
        self._constants.update(add_weights(self, model.graph))
        for value in model.graph.inputs:
            if value.name in self.fixed:
                number = self.fixed[value.name]
                self._constants[value] = known_numbers(number)
        self._fold_constants(model.graph)

    @property
    def arguments(self) -> list[ir.Value]:
        """What stands for the graph's inputs, one value a tensor; fixed inputs and those with a default do not."""
        return self._inputs.values

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        environment = Environment()
        environment.values.update(self._inputs.bound(tensors))
        self.operators_in_loops = 0
        with traceback.preserve_node_meta():
            outputs = self._run_nodes(self.source_model.graph, environment)
        named = [
            names_of(value.name or "", held)
            for value, held in zip(self.source_model.graph.outputs, outputs, strict=True)
        ]
        self.output_names = [name for one in named for name in one]
        return tuple(self.tensor(held) for one in named for held in one.values())

    def run_graph(
        self,
        graph: ir.Graph,
        inputs: Sequence[Any],
        outer: Environment,
        values: Mapping[ir.Value, Any],
        weights: Mapping[str, Tensor],
    ) -> list[Any]:
        """The values of a subgraph's outputs; `values` and `weights` stand in for those around it."""
        environment = Environment(outer)
        environment.values.update(values)
        environment.values.update(zip(graph.inputs, inputs, strict=False))
        before = self._stand_ins
        self._stand_ins = {**before, **weights}
        try:
            return self._run_nodes(graph, environment)
        finally:
            self._stand_ins = before

    def constant(self, value: ir.Value) -> Known | None:
        """The numbers of a value that is a weight, or computed from constants alone."""
        return self._constants.get(value)

    def version(self, domain: str) -> int:
        """The opset version that the model imports for a domain."""
        found: int = self._versions.get("" if domain in ONNX_DOMAINS else domain, 1)
        return found

    def find(self, node: ir.Node) -> Operator | None:
        """The table's entry for a node, or None."""
        return find_for(node, self._versions)

    def node_name(self, node: ir.Node) -> str:
        """The node's name, or that of its first output."""
        return node_name(node)

    def tensor(self, value: Any) -> Tensor:
        """A value as a tensor; one that the module keeps is that weight."""
        if isinstance(value, Known):
            return value.tensor() if value.weight is None else self.weight(value.weight)
        if isinstance(value, Tensor):
            return value
        raise TypeError(f"a tensor is needed, not {'nothing' if value is None else type(value).__name__}")

    def weight(self, name: str) -> Tensor:
        """The parameter or buffer under a dotted name, or what stands in for it in a subgraph."""
        if name in self._stand_ins:
            return self._stand_ins[name]
        path, _, leaf = name.rpartition(".")
        found = getattr(self.get_submodule(path), leaf)
        assert isinstance(found, Tensor)
        return found

    def _run_nodes(self, graph: ir.Graph, environment: Environment) -> list[Any]:
        for node in graph:
            if node.outputs and all(value in self._constants for value in node.outputs if value.name):
                continue
            with traceback.annotate({SCOPE: scope_path(node)}):
                results = self._run_node(node, environment)
            for index, value in enumerate(node.outputs):
                if index < len(results):
                    environment[value] = results[index]
                elif value.name:
                    problem = f"{operator_label(node)} has no output {index}, {value.name!r}"
                    raise CompilerError(self.doing, problem, "The file is damaged.", self.node_name(node))
            for value in self._read_last(graph).get(node, ()):
                environment.values.pop(value, None)
        return [self._read(value, environment, "the graph returns") for value in graph.outputs]

    def _read_last(self, graph: ir.Graph) -> dict[ir.Node, list[ir.Value]]:
        """The values that no one reads after a node, so that memory holds only what is still needed."""
        if graph not in self._last_reads:
            readers: dict[ir.Value, ir.Node] = {}
            for node in graph:
                readers.update(dict.fromkeys((value for value in node.inputs if value is not None), node))
            found: dict[ir.Node, list[ir.Value]] = {}
            for value, node in readers.items():
                inside = all(use.node.graph is graph for use in value.uses())
                if inside and value not in graph.outputs and not value.is_graph_input():
                    found.setdefault(node, []).append(value)
            self._last_reads[graph] = found
        return self._last_reads[graph]

    def _read(self, value: ir.Value | None, environment: Environment, reader: str) -> Any:
        if value is None or value.name == "":
            return None
        constant = self._constants.get(value)
        if constant is not None:
            return constant
        if value not in environment:
            problem = f"{reader} {value.name!r}, which nothing computes"
            raise CompilerError(self.doing, problem, "The file is damaged.")
        return environment[value]

    def _run_node(self, node: ir.Node, environment: Environment) -> tuple[Any, ...]:
        reader = f"{self.node_name(node)} reads"
        arguments = [self._read(value, environment, reader) for value in node.inputs]
        entry = self.find(node)
        if entry is None:
            hint = "`compile inspect` lists every operator of the model that is not read."
            problem = f"operator {operator_label(node)} is not read"
            raise CompilerError(self.doing, problem, hint, self.node_name(node))
        context = NodeContext(self, node, environment)
        try:
            result = self._known_result(node, context, arguments)
            if result is NotImplemented:
                result = self._called(entry, context, self._converted(entry, context, arguments))
        except CompilerError:
            raise
        except Exception as error:
            hint = f"Its inputs are {described(arguments)}."
            problem = f"{operator_label(node)} fails: {first_line(error)}"
            raise CompilerError(self.doing, problem, hint, self.node_name(node)) from error
        return result if isinstance(result, tuple) else (result,)

    def _known_result(self, node: ir.Node, context: NodeContext, arguments: Sequence[Any]) -> Any:
        """What the node gives where every input is Known and numbers suffice; otherwise NotImplemented."""
        present = [one for one in arguments if one is not None]
        entry = KNOWN_TABLE.get(("", node.op_type)) if node.domain in ONNX_DOMAINS else None
        if entry is None or not present or not all(isinstance(one, Known) for one in present):
            return NotImplemented
        if sum(one.size for one in present) > LARGEST_FOLDED:
            return NotImplemented
        if any(one.weight is not None and one.dtype.is_floating_point for one in present):
            return NotImplemented  # what is computed from a weight must follow when the weight trains
        return self._called(entry, context, arguments)

    def _called(self, entry: Operator, context: NodeContext, arguments: Sequence[Any]) -> Any:
        if len(arguments) < entry.required_inputs:
            raise ValueError(f"it needs {entry.required_inputs} inputs and has {len(arguments)}")
        keywords: dict[str, Any] = {}
        for name, value in self._attribute_values(context.node).items():
            if name in entry.attributes:
                keywords[name] = value
        for name, parameter in entry.attributes.items():
            if name not in keywords and parameter.default is parameter.empty:
                raise ValueError(f"it needs attribute {name}")
        if entry.wants_node:
            keywords["node"] = context
        return entry.function(*arguments, **keywords)

    def _attribute_values(self, node: ir.Node) -> dict[str, Any]:
        if node not in self._attributes:
            values = {attribute_parameter(name): attribute_value(one) for name, one in node.attributes.items()}
            self._attributes[node] = values
        return self._attributes[node]

    def _converted(self, entry: Operator, context: NodeContext, arguments: Sequence[Any]) -> list[Any]:
        forms = list(entry.input_forms)
        if entry.rest_form is not None:
            forms += [entry.rest_form] * (len(arguments) - len(forms))
        if len(arguments) > len(forms):
            if any(one is not None for one in arguments[len(forms) :]):
                raise ValueError(f"it takes {len(forms)} inputs and has {len(arguments)}")
            arguments = arguments[: len(forms)]
        pairs = zip(forms, arguments, strict=False)
        return [
            self._in_form(context, index, name, form, one, arguments) for index, ((name, form), one) in enumerate(pairs)
        ]

    def _in_form(
        self, context: NodeContext, index: int, name: str, form: Any, given: Any, arguments: Sequence[Any]
    ) -> Any:
        if given is None:
            if form is Tensor or form is Known:
                raise ValueError(f"its input {name!r} is missing")
            return None
        if wants(form, Known):
            if isinstance(given, Known):
                return given
            raise context.needed(index, f"its {name}")
        if form in (Operand, Operand | None):
            return self._operand(given, arguments)
        return self.tensor(given) if wants(form, Tensor) else given

    def _operand(self, given: Any, arguments: Sequence[Any]) -> Any:
        """A known number as a Python number where a tensor of its dtype and at least its rank stands beside it."""
        if isinstance(given, Known) and given.size == 1 and given.is_plain:
            rank = len(given.shape)
            tensors = [one for one in arguments if isinstance(one, Tensor)]
            if (
                tensors
                and all(one.dtype == given.dtype for one in tensors)
                and any(one.dim() >= rank for one in tensors)
            ):
                return given.item()
        return self.tensor(given)

    def _fold_constants(self, graph: ir.Graph) -> None:
        """Read attributes, and compute what follows from small constants alone, once, outside of any trace."""
        environment = Environment()
        for node in every_node(graph):
            with suppress(Exception):  # it is read again in its place, where the error is reported
                self._attribute_values(node)
            entry = self.find(node)
            if entry is None or node.op_type in NOT_FOLDED or not self._is_foldable(node):
                continue
            try:
                results = self._run_node(node, environment)
            except Exception:  # it is read again in its place, where the error is reported
                continue
            for value, result in zip(node.outputs, results, strict=False):
                if isinstance(result, Tensor) and result.numel() <= LARGEST_FOLDED:
                    result = known_numbers(result.detach())
                if isinstance(result, Known) and result.is_plain:
                    self._constants[value] = result

    def _is_foldable(self, node: ir.Node) -> bool:
        """Whether all inputs are known numbers that no one would train: integers, or single numbers."""
        held = [self._constants.get(value) for value in node.inputs if value is not None and value.name]
        if not held or any(subgraphs(one) for one in node.attributes.values()):
            return False
        return all(
            one is not None
            and one.dtype not in NOT_IN_NUMPY
            and (one.size == 1 or (one.weight is None and one.size <= LARGEST_FOLDED))
            for one in held
        )


NOT_IN_NUMPY = frozenset(
    {
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2,
        torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
    }
)


def known_numbers(tensor: Tensor) -> Known:
    """The numbers of a tensor that is at hand."""
    return Known((tensor.float() if tensor.dtype in NOT_IN_NUMPY else tensor).numpy(), tensor.dtype)


def attribute_value(attribute: ir.Attr) -> Any:
    """An attribute as Python values; a tensor becomes a Known, a graph stays a graph."""
    kind = attribute.type.name
    if kind == "TENSOR":
        tensor = attribute.as_tensor()
        held = tensor_from_numpy(tensor.numpy(), tensor.dtype)
        return known_numbers(held)
    return list(attribute.value) if kind.endswith("S") and kind != "GRAPHS" else attribute.value


def described(arguments: Sequence[Any]) -> str:
    """Shapes and dtypes of values, for an error."""

    def one(value: Any) -> str:
        if isinstance(value, (Tensor, Known)):
            return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
        return "none" if value is None else type(value).__name__

    return ", ".join(map(one, arguments)) or "none"
