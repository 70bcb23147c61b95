"""The table of ONNX operators: small Python functions over tensors and known numbers, found by name and version.

    @operator("Softmax", since=13)
    def softmax(x: Tensor, *, axis: int = -1) -> Tensor: ...

A function's positional parameters are the operator's inputs, and their annotations say in which form it wants them:

    Tensor, Tensor | None    a tensor (None where an optional input is left out)
    Operand                  a tensor, or a Python number where the input is one known number that broadcasts away
    Known, Known | None      numbers known while reading; anything else is refused (see `Known`)
    Value                    whatever it is: Tensor, Known, list (a sequence) or None
    *inputs: ...             the rest of the inputs, each in that form

Keyword-only parameters are attributes, by their ONNX name in snake case (`transA` is `trans_a`), with ONNX's default.
A keyword-only parameter `node: NodeContext` asks for what stands around: versions, element types, subgraphs.
A function returns one value, or a tuple of values for several outputs. `known_operator` registers what an operator
does when all its inputs are Known; the results are Known then.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

Function = TypeVar("Function", bound=Callable[..., Any])
Operand = Tensor | int | float | bool
Value = Any

NODE = "node"
ONNX_DOMAINS = ("", "ai.onnx")
CAMEL_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True)
class Operator:
    """One entry: the function, and the opset version it holds from."""

    name: str
    domain: str
    since: int
    function: Callable[..., Any]

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self.function)

    @cached_property
    def _hints(self) -> dict[str, Any]:
        import onnx_ir as ir

        return typing.get_type_hints(self.function, localns={"ir": ir})

    @cached_property
    def input_forms(self) -> list[tuple[str, Any]]:
        """Name and annotation of every positional parameter."""
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [
            (name, self._hints.get(name, Any)) for name, one in self._signature.parameters.items() if one.kind in kinds
        ]

    @cached_property
    def rest_form(self) -> tuple[str, Any] | None:
        """Name and annotation of `*inputs`, or None."""
        for name, one in self._signature.parameters.items():
            if one.kind is inspect.Parameter.VAR_POSITIONAL:
                return name, self._hints.get(name, Any)
        return None

    @cached_property
    def required_inputs(self) -> int:
        """How many inputs have no default."""
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = self._signature.parameters.values()
        return sum(one.kind in kinds and one.default is one.empty for one in parameters)

    @cached_property
    def attributes(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters, without `node`."""
        parameters = self._signature.parameters.items()
        return {name: one for name, one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY and name != NODE}

    @cached_property
    def wants_node(self) -> bool:
        """Whether the function asks for its NodeContext."""
        return NODE in self._signature.parameters


TABLE: dict[tuple[str, str], list[Operator]] = {}
KNOWN_TABLE: dict[tuple[str, str], Operator] = {}


def operator(*names: str, since: int = 1, domain: str = "") -> Callable[[Function], Function]:
    """Register a function for operators of `domain`, from opset version `since` on."""

    def register(function: Function) -> Function:
        for name in names:
            entries = TABLE.setdefault((domain, name), [])
            if any(entry.since == since for entry in entries):
                raise ValueError(f"two functions for {domain or 'ai.onnx'} {name} since {since}")
            entries.append(Operator(name, domain, since, function))
            entries.sort(key=lambda entry: entry.since)
        return function

    return register


def known_operator(*names: str, domain: str = "") -> Callable[[Function], Function]:
    """Register what operators do with inputs that are all Known. The function may return NotImplemented."""

    def register(function: Function) -> Function:
        for name in names:
            if (domain, name) in KNOWN_TABLE:
                raise ValueError(f"two functions of known numbers for {name}")
            KNOWN_TABLE[domain, name] = Operator(name, domain, 1, function)
        return function

    return register


def find_operator(domain: str, name: str, version: int) -> Operator | None:
    """The entry that holds at an opset version, or None."""
    _load_all()
    found = None
    for entry in TABLE.get((domain, name), ()):
        if entry.since <= version:
            found = entry
    return found


def opset_versions(model: ir.Model) -> dict[str, int]:
    """The opset version that a model imports, by domain."""
    return {("" if domain in ONNX_DOMAINS else domain): version for domain, version in model.opset_imports.items()}


def find_for(node: ir.Node, versions: Mapping[str, int]) -> Operator | None:
    """The entry for a node of a model that imports `versions`, or None."""
    domain = "" if node.domain in ONNX_DOMAINS else node.domain
    return find_operator(domain, node.op_type, node.version or versions.get(domain, 1))


def attribute_parameter(name: str) -> str:
    """The parameter's name for an attribute: `transA` -> `trans_a`."""
    return CAMEL_HUMP.sub("_", name).lower()


def wants(form: Any, kind: type) -> bool:
    """Whether an annotation admits `kind`."""
    return form is kind or kind in typing.get_args(form)


@cache
def _load_all() -> None:
    from compiler.frontends.onnx_model import operators

    for found in pkgutil.walk_packages(operators.__path__, f"{operators.__name__}."):
        importlib.import_module(found.name)
