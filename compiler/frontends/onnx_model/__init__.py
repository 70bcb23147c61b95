"""A `.onnx` file: a table of small functions reads ONNX operators, and tracing makes the Program of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compiler.frontends import Frontend, LoadOptions
from compiler.hookspecs import hookimpl

if TYPE_CHECKING:
    from compiler.program import Program


class OnnxModel(Frontend):
    """Reads an ONNX model with its weights, names and metadata."""

    name = "onnx-model"
    form = "a .onnx file"

    def accepts(self, model: str) -> bool:
        return model.lower().endswith(".onnx") and Path(model).expanduser().is_file()

    def load(self, model: str, options: LoadOptions) -> Program:
        from compiler.frontends.input_texts import fixed_inputs, stated_inputs
        from compiler.frontends.onnx_model.model_file import read_model
        from compiler.frontends.onnx_model.reading import program_from_onnx

        doing = f"reading model {model!r}"
        path = Path(model).expanduser()
        fixed, others = fixed_inputs(options.inputs)
        stated = stated_inputs(others)
        return program_from_onnx(
            read_model(doing, path), doing=doing, source=path.name, stated=stated, fixed_numbers=fixed
        )


@hookimpl
def register_frontends() -> list[type[Frontend]]:
    return [OnnxModel]
