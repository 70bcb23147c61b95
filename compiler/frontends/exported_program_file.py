"""A `.pt2` file: an ExportedProgram that `torch.export.save` wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_unflatten

from compiler.errors import CompilerError
from compiler.frontends import Frontend, LoadOptions
from compiler.frontends.dynamic_dims import default_dynamic_dims
from compiler.frontends.input_texts import stated_examples, stated_inputs
from compiler.frontends.module_outputs import named_tensors
from compiler.frontends.pt2_safety import check_archive
from compiler.frontends.torch_export import capture
from compiler.frontends.traced_module import first_line
from compiler.hookspecs import hookimpl
from compiler.program import Program, plain_graph_module


class ExportedProgramFile(Frontend):
    """Reads an ExportedProgram and captures it again, with the dynamic dims it was exported with."""

    name = "exported-program-file"
    form = "a .pt2 file"

    def accepts(self, model: str) -> bool:
        return model.lower().endswith(".pt2") and Path(model).expanduser().is_file()

    def load(self, model: str, options: LoadOptions) -> Program:
        doing = f"reading model {model!r}"
        path = Path(model).expanduser()
        if not options.allow_pickle:
            check_archive(doing, path)
        try:
            exported = torch.export.load(path)
        except Exception as error:  # the reader asserts, indexes and unpickles; damage shows as any error
            hint = f"It was saved by another torch, or is damaged; this is torch {torch.__version__}."
            raise CompilerError(doing, f"torch.export cannot read it ({first_line(error)})", hint) from error
        names = [str(name) for name in exported.graph_signature.user_inputs]
        placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"][-len(names) :]
        examples = _examples(doing, exported, names)
        stated = stated_inputs(options.inputs)
        dynamic = {**_dynamic_dims(placeholders, examples), **{name: one.dynamic for name, one in stated.items()}}
        return capture(
            plain_graph_module(exported),
            {**examples, **stated_examples(stated)},
            source=path.name,
            dynamic=dynamic,
            output_names=_output_names(exported),
            clone=False,
        )


def _examples(doing: str, exported: ExportedProgram, names: list[str]) -> dict[str, Tensor]:
    if exported.example_inputs is None:
        hint = "Save it with the example inputs it was exported with."
        raise CompilerError(doing, "it holds no example inputs", hint)
    values = tree_leaves(exported.example_inputs)
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, Tensor):
            hint = "Export it with that argument fixed inside the module."
            raise CompilerError(doing, f"its input {name!r} is {type(value).__name__}, not a tensor", hint)
    return dict(zip(names, values, strict=True))


def _dynamic_dims(placeholders: list[fx.Node], examples: dict[str, Tensor]) -> dict[str, dict[int, str]]:
    """Dims that are symbols in the file; one symbol has one name."""
    usual = default_dynamic_dims(examples)
    leading = {str(node.meta["val"].shape[0]) for node in placeholders if _is_symbolic(node, 0)}
    names: dict[str, str] = {}
    dims: dict[str, dict[int, str]] = {}
    for node, (input_name, tensor) in zip(placeholders, examples.items(), strict=True):
        dims[input_name] = {}
        for index in (index for index in range(tensor.dim()) if _is_symbolic(node, index)):
            other = "batch" if index == 0 and len(leading) == 1 else f"{input_name}_dim_{index}"
            wanted = usual[input_name].get(index, other)
            dims[input_name][index] = names.setdefault(str(node.meta["val"].shape[index]), wanted)
    return dims


def _is_symbolic(node: fx.Node, index: int) -> bool:
    shape = node.meta["val"].shape
    return index < len(shape) and isinstance(shape[index], torch.SymInt)


def _output_names(exported: ExportedProgram) -> tuple[str, ...]:
    count = len(exported.graph_signature.user_outputs)
    outputs = tree_unflatten([torch.empty(0) for _ in range(count)], exported.call_spec.out_spec)
    return tuple(named_tensors(outputs))


@hookimpl
def register_frontends() -> list[type[Frontend]]:
    return [ExportedProgramFile]
