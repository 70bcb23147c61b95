"""A `.gguf` file: a llama.cpp model. transformers builds it and dequantizes its weights to float32; blocks that our
quantized operators can hold then take the place of the floats (docs/decisions/0010).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.errors import CompilerError
from compiler.frontends import Frontend, LoadOptions
from compiler.frontends.gguf_header import GgufDamageError, read_tensor_table
from compiler.frontends.gguf_quantized_form import Reorder, hold_blocks
from compiler.frontends.tokenizer_files import converted_tokenizer
from compiler.frontends.traced_module import first_line
from compiler.frontends.transformers_folder import captured
from compiler.frontends.transformers_model import build_model
from compiler.frontends.transformers_offline import transformers_offline
from compiler.hookspecs import hookimpl
from compiler.program import Program

if TYPE_CHECKING:
    import numpy as np


class GgufFile(Frontend):
    """Builds the causal language model that the file describes and captures it."""

    name = "gguf-file"
    form = "a .gguf file"

    def accepts(self, model: str) -> bool:
        return model.lower().endswith(".gguf") and Path(model).expanduser().is_file()

    def load(self, model: str, options: LoadOptions) -> Program:
        doing = f"reading model {model!r}"
        path = Path(model).expanduser()
        _check_complete(doing, path)
        with transformers_offline(), _parsed_once(path) as file:
            import transformers

            reading = {"gguf_file": path.name}
            try:
                config = transformers.AutoConfig.from_pretrained(path.parent, local_files_only=True, **reading)
            except Exception as error:  # transformers maps each architecture's fields in its own way
                hint = "transformers reads llama, qwen2, gemma2, phi3 and some other architectures from GGUF."
                raise CompilerError(doing, f"its architecture is not read ({first_line(error)})", hint) from error
            config.use_cache = False
            with redirect_stderr(io.StringIO()):  # the conversion draws a progress bar that has no switch
                built, missing = build_model(doing, path.parent, transformers.AutoModelForCausalLM, config, **reading)
                tokenizer = converted_tokenizer(path.parent, gguf_file=path.name)
            names, reorder = _conversion(built, file)
            program = captured(doing, built, None, path, options, missing, tokenizer)
        program.notes.extend(hold_blocks(program, file.tensors, names, reorder))
        return program


@contextmanager
def _parsed_once(path: Path) -> Iterator[Any]:
    """The file as gguf reads it. Inside, transformers is given the same reader, where it would make one for the config,
    one for the weights and one for the tokenizer: each walks the whole vocabulary string by string.
    """
    import gguf

    make_reader = gguf.GGUFReader
    file = make_reader(path)
    gguf.GGUFReader = lambda *_: file
    try:
        yield file
    finally:
        gguf.GGUFReader = make_reader


def _conversion(model: Any, file: Any) -> tuple[dict[str, str], Reorder]:
    """How transformers names the file's tensors, and what it does to the matrices."""
    from transformers import modeling_gguf_pytorch_utils as loading

    architecture = file.fields["general.architecture"].contents()
    processor = loading.TENSOR_PROCESSORS.get(architecture, loading.TensorProcessor)(config=model.config.to_dict())
    names: dict[str, str] = loading.get_gguf_hf_weights_map(model, processor)

    def reorder(name: str, matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        try:
            done = processor.process(matrix, name, tensor_key_mapping=names, parsed_parameters={"tensors": {}})
        except Exception:  # made for the whole tensor: some split experts, or transpose
            return None
        return None if done.name is None else done.weights

    return names, reorder


def _check_complete(doing: str, path: Path) -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise CompilerError(doing, "the package gguf is not installed", "Install regraft[gguf].") from error
    try:
        tensors = read_tensor_table(path)
    except GgufDamageError as damage:
        hint = f"It has {path.stat().st_size:,} bytes: is it a whole GGUF file? Fetch it again."
        raise CompilerError(doing, f"it is truncated or damaged ({damage})", hint) from damage
    if not tensors:
        raise CompilerError(doing, "it holds no weights", "Is it only a vocabulary? Fetch the model's own file.")


@hookimpl
def register_frontends() -> list[type[Frontend]]:
    return [GgufFile]
