"""Files that are pickles: reading one can run any code in it, so they are refused unless the user allows it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

from compiler.errors import CompilerError
from compiler.frontends import Frontend, LoadOptions
from compiler.hookspecs import hookimpl
from compiler.program import Program

SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


class PickleFile(Frontend):
    """Reads a module saved whole with `torch.save`, with --allow-pickle and --input only."""

    name = "pickle-file"
    form = f"a file that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} (with --allow-pickle)"

    def accepts(self, model: str) -> bool:
        return Path(model).suffix.lower() in SUFFIXES and Path(model).expanduser().is_file()

    def load(self, model: str, options: LoadOptions) -> Program:
        import torch

        from compiler.frontends.input_texts import stated_examples, stated_inputs
        from compiler.frontends.torch_export import capture

        doing = f"reading model {model!r}"
        if not options.allow_pickle:
            hint = "Save it as safetensors or .pt2, or name file.py:factory; if you trust it, add --allow-pickle."
            raise CompilerError(doing, "it is a pickle, and reading one can run any code that is in it", hint)
        try:
            loaded = torch.load(Path(model).expanduser(), map_location="cpu", weights_only=False)
        except (
            pickle.UnpicklingError,
            RuntimeError,
            EOFError,
            AttributeError,
            ImportError,
            zipfile.BadZipFile,
        ) as error:
            hint = "Is it complete, and are the classes it was saved with installed?"
            raise CompilerError(doing, f"it cannot be unpickled ({error})", hint) from error
        if not isinstance(loaded, torch.nn.Module):
            hint = "Weights alone hold no model: name a function file.py:factory that builds the module and loads them."
            raise CompilerError(doing, f"it holds {type(loaded).__name__}, not a module", hint)
        stated = stated_inputs(options.inputs)
        dynamic = {name: one.dynamic for name, one in stated.items()}
        return capture(loaded, stated_examples(stated), source=model, dynamic=dynamic, clone=False)


@hookimpl
def register_frontends() -> list[type[Frontend]]:
    return [PickleFile]
