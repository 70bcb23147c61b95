"""A folder with config.json: a transformers checkpoint, or a sentence-transformers one, read from disk alone.

Only safetensors are read; code that comes with a checkpoint is never run. The graph computes in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compiler.errors import CompilerError
from compiler.frontends import Frontend, LoadOptions
from compiler.frontends.input_texts import stated_examples, stated_inputs
from compiler.frontends.safetensors_files import check_safetensors, found_pickle, has_safetensors
from compiler.frontends.sentence_pooling import read_sentence_pooling
from compiler.frontends.tokenizer_files import tokenizer_of_folder
from compiler.frontends.torch_export import capture
from compiler.frontends.traced_module import Readout
from compiler.frontends.transformers_inputs import dynamic_dims, example_inputs
from compiler.frontends.transformers_model import (
    build_model,
    context_length,
    model_class,
    read_config,
    refuse_missing,
    role_of,
)
from compiler.frontends.transformers_offline import transformers_offline
from compiler.frontends.widened_weights import widened_checkpoint
from compiler.hookspecs import hookimpl
from compiler.program import Program, dtype_name


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
            stored = getattr(config, "dtype", None) or torch.float32
            with widened_checkpoint(doing, folder) if reading["use_safetensors"] else nullcontext(folder) as source:
                built, missing = build_model(doing, source, model_class(doing, config), config, **reading)
            program = captured(doing, built, pooling, folder, options, missing, tokenizer_of_folder(folder))
        if stored != torch.float32:
            program.notes.append(f"the checkpoint's weights are {dtype_name(stored)}; the graph computes in float32")
        return program


def captured(
    doing: str,
    model: Any,
    readout: Readout | None,
    place: Path,
    options: LoadOptions,
    missing: set[str],
    tokenizer: Path | None,
) -> Program:
    """Capture a transformers model with example inputs of its kind, or those that --input states."""
    role = role_of(model)
    stated = stated_inputs(options.inputs)
    given = {} if stated and model.main_input_name in stated else example_inputs(doing, model, role)
    dynamic = {**dynamic_dims(given), **{name: one.dynamic for name, one in stated.items()}}
    program = capture(
        model,
        {**given, **stated_examples(stated)},
        source=_short_name(place),
        role=role,
        tokenizer=tokenizer,
        dynamic=dynamic,
        readout=readout or _only_logits,
        clone=False,
    )
    refuse_missing(doing, missing, set(program.weights()))
    program.context_length = context_length(model.config)
    if tokenizer is None and "input_ids" in given:
        program.notes.append("no tokenizer could be read: texts cannot be given to the artifact")
    return program


def _short_name(place: Path) -> str:
    """The last two parts of the path: enough to know the model, and nothing of the machine it was read on."""
    return "/".join(place.resolve().parts[-2:])


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


@hookimpl
def register_frontends() -> list[type[Frontend]]:
    return [TransformersFolder]
