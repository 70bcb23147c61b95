"""A `.gguf` file: a llama.cpp model, its weights dequantized to float32 by transformers."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path

from compiler.errors import CompilerError
from compiler.frontends import Frontend, LoadOptions
from compiler.frontends.gguf_header import GgufDamageError, read_tensor_table
from compiler.frontends.tokenizer_files import converted_tokenizer
from compiler.frontends.traced_module import first_line
from compiler.frontends.transformers_folder import captured
from compiler.frontends.transformers_model import build_model
from compiler.frontends.transformers_offline import transformers_offline
from compiler.hookspecs import hookimpl
from compiler.program import Program


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
        with transformers_offline():
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
            return captured(doing, built, None, path, options, missing, tokenizer)


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
