"""Program -> ONNX graph: every node by its translation; torch decomposes what has none into what has one."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch import Tensor, fx

from compiler.aliasing import make_functional, mutates
from compiler.backends.onnx_runtime.graph_writer import MICROSOFT, GraphWriter
from compiler.backends.onnx_runtime.translations import Translation, arguments, load_all, operator_name
from compiler.errors import CompilerError
from compiler.program import plain_graph_module
from compiler.regions import nested_graphs, runs_regions

if TYPE_CHECKING:
    from compiler.program import Program

OPSET = 24
IR_VERSION = 11
AFTER_21 = {"Attention", "RMSNormalization", "RotaryEmbedding", "Swish", "TensorScatter"}
"""Operators that opset 21 does not have."""
UNTIL_21 = frozenset(
    {
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "RoiAlign",
    }
)
"""ONNX Runtime 1.31 has no kernels for the later versions of these."""
CHECKS = ("aten._assert_", "aten.sym_constrain_", "torch._check", "aten._assert_scalar")


def onnx_model(program: Program) -> ir.Model:
    """The Program as an ONNX model in memory. Raises CompilerError naming the operator that cannot be written."""
    program = writable_program(program)
    if any(runs_regions(node) for node in program.graph.nodes):
        program = program.copy()  # weights are moved into its regions
    writer = GraphWriter(program)
    write_nodes(writer, program.graph)
    graph = writer.finish()
    opset, ir_version = _versions(graph)
    graph.opset_imports.update({"": opset, MICROSOFT: 1})
    return ir.Model(
        graph,
        ir_version=ir_version,
        producer_name="regraft",
        doc_string=program.description or None,
        metadata_props=program.metadata,
    )


def write_nodes(writer: GraphWriter, graph: fx.Graph) -> None:
    """Translate the operators of a graph, in order."""
    translations = load_all()
    for node in graph.nodes:
        if node.op == "call_function" and not _is_check(node):
            writer.begin(node)
            writer.bind(node, _translated(translations, writer, node))


def _versions(graph: ir.Graph) -> tuple[int, int]:
    """The opset and IR version that the graph needs: two-bit tensors and BitCast came late.

    ONNX Runtime's kernels for some operators stop at opset 21: a graph with one is written in that where it can be.
    """
    operators = {node.op_type for node in graph.all_nodes()}
    if operators & UNTIL_21 and not operators & AFTER_21:
        return (21, 10)
    held = {value.dtype for value in graph.initializers.values()}
    held |= {value.dtype for node in graph.all_nodes() for value in node.outputs}
    if "BitCast" in operators:
        return (26, 13)
    return (25, 13) if held & {ir.DataType.UINT2, ir.DataType.INT2} else (OPSET, IR_VERSION)


def writable_program(program: Program) -> Program:
    """The Program itself where every node can be written, otherwise one with only the unknown operators decomposed.

    Raises CompilerError naming an operator that has neither a translation nor such a decomposition.
    """
    translations = load_all()
    missing = _missing(program, translations)
    if any(mutates(node) for node in missing):
        program = program.copy()
        for module in nested_graphs(program.graph_module):
            make_functional(module.graph)
        missing = _missing(program, translations)
    if not missing:
        return program
    known: Any = torch.export.default_decompositions()
    unknown = {node.target for node in missing}
    table = {target: rule for target, rule in known.items() if target in unknown}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # torch, of its own classes
        exported = program.export().run_decompositions(table)
    decomposed = replace(program, graph_module=plain_graph_module(exported))
    still = _missing(decomposed, translations)
    if still:
        name = operator_name(still[0])
        hint = "Replace it in the model, or add a translation under backends/onnx_runtime/translations."
        raise CompilerError("lowering to ONNX", f"operator {name} has no translation", hint, still[0].name)
    return decomposed


def _missing(program: Program, translations: dict[str, Translation]) -> list[fx.Node]:
    return [
        node
        for module in nested_graphs(program.graph_module)
        for node in module.graph.nodes
        if node.op == "call_function"
        and not _is_check(node)
        and (operator_name(node) not in translations or mutates(node))
    ]


def _is_check(node: fx.Node) -> bool:
    """Whether a node only checks, or computes a number that only checks use."""
    if operator_name(node).startswith(CHECKS):
        return not node.users
    is_number = isinstance(node.meta.get("val"), (torch.SymInt, torch.SymBool))
    return is_number and bool(node.users) and all(_is_check(user) for user in node.users)


def _translated(translations: dict[str, Translation], writer: GraphWriter, node: fx.Node) -> Any:
    held = node.meta.get("val")
    if isinstance(held, torch.SymInt) and (known := held.node.maybe_as_int()) is not None:
        return writer.size(known)
    if isinstance(held, Tensor) and held.is_complex():
        raise CompilerError("lowering to ONNX", "complex numbers", "ONNX Runtime has no complex kernels.", node.name)
    return translations[operator_name(node)](writer, node, *arguments(node))
