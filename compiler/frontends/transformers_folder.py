"""A folder with config.json: a transformers checkpoint, or a sentence-transformers one, read from disk alone.

Only safetensors are read; code that comes with a checkpoint is never run. The graph computes in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from compiler.errors import CompilerError
from compiler.frontends import Frontend, LoadOptions
from compiler.frontends.dynamic_dims import default_dynamic_dims
from compiler.frontends.input_texts import stated_examples, stated_inputs
from compiler.frontends.safetensors_files import check_safetensors, found_pickle, has_safetensors
from compiler.frontends.sentence_pooling import read_sentence_pooling
from compiler.frontends.torch_export import capture
from compiler.frontends.traced_module import Readout
from compiler.frontends.transformers_inputs import example_inputs
from compiler.frontends.transformers_model import build_model, model_class, read_config, refuse_missing, role_of
from compiler.frontends.transformers_offline import transformers_offline
from compiler.hookspecs import hookimpl
from compiler.program import Program

TOKENIZER = "tokenizer.json"


class TransformersFolder(Frontend):
    """Builds the model that config.json names and captures it."""

    name = "transformers-folder"
    form = "a folder with config.json"

    def accepts(self, model: str) -> bool:
        return (Path(model).expanduser() / "config.json").is_file()

    def load(self, model: str, options: LoadOptions) -> Program:
        doing = f"reading model {model!r}"
        folder = Path(model).expanduser()
        reading = _weights(doing, folder, options)
        with transformers_offline():
            config = read_config(doing, folder)
            pooling = read_sentence_pooling(doing, folder)
            if pooling is not None:
                config.architectures = None
            built, missing = build_model(doing, folder, model_class(doing, config), config, **reading)
            return captured(
                doing,
                built,
                pooling,
                folder,
                options,
                set(missing),
                tokenizer=folder if _has_tokenizer(folder) else None,
            )


def captured(
    doing: str,
    model: Any,
    readout: Readout | None,
    folder: Path,
    options: LoadOptions,
    missing: set[str],
    tokenizer: Path | None,
) -> Program:
    """Capture a transformers model with example inputs of its kind, or those that --input states."""
    role = role_of(model)
    stated = stated_inputs(options.inputs)
    given = {} if stated and model.main_input_name in stated else example_inputs(doing, model, role, folder)
    dynamic = {**default_dynamic_dims(given), **{name: one.dynamic for name, one in stated.items()}}
    program = capture(
        model,
        {**given, **stated_examples(stated)},
        source=folder.name,
        role=role,
        tokenizer=tokenizer,
        dynamic=dynamic,
        readout=readout or _only_logits,
        clone=False,
    )
    refuse_missing(doing, missing, set(program.weights()))
    return program


def _only_logits(outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Leave out what models return beside their logits."""
    return {"logits": outputs["logits"]} if "logits" in outputs else outputs


def _weights(doing: str, folder: Path, options: LoadOptions) -> dict[str, Any]:
    if has_safetensors(folder):
        check_safetensors(doing, folder)
        return {"use_safetensors": True}
    pickled = found_pickle(folder)
    if pickled is None:
        raise CompilerError(doing, "the folder has no weights", "It needs model.safetensors beside config.json.")
    if not options.allow_pickle:
        hint = "Save the model again as safetensors; if you trust its maker, add --allow-pickle."
        raise CompilerError(doing, f"{pickled} is a pickle, and reading one can run any code that is in it", hint)
    return {"use_safetensors": False}


def _has_tokenizer(folder: Path) -> bool:
    return (folder / TOKENIZER).is_file()


@hookimpl
def register_frontends() -> list[type[Frontend]]:
    return [TransformersFolder]
