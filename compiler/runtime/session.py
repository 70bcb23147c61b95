"""An opened artifact: checked arrays in, arrays out; text where the model reads text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.errors import CompilerError
from compiler.runtime.engines import Engine, first_line, open_engine
from compiler.runtime.input_check import check_inputs
from compiler.runtime.integrity import require_files
from compiler.runtime.manifest import Manifest, read_manifest
from compiler.runtime.text import encode_batch, limited, read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Arrays = dict[str, np.ndarray[Any, Any]]


class Session:
    """An artifact ready to run. `folder` is where it stands, `manifest` what it says of itself."""

    def __init__(self, folder: Path, manifest: Manifest, engine: Engine) -> None:
        self.folder = folder
        self.manifest = manifest
        self._engine = engine

    @classmethod
    def open(cls, folder: Path, threads: int | None = None) -> Session:
        """Open the artifact in `folder`. Raises CompilerError when it is damaged or this machine cannot run it.

        Presence and size of every file are checked; `verify` also reads them all.
        """
        manifest = read_manifest(folder)
        require_files(folder, manifest)
        return cls(folder, manifest, open_engine(folder, manifest, threads))

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """The outputs by name. Raises CompilerError when the inputs are not what the model takes."""
        doing = f"running {self.manifest.name}"
        check_inputs(doing, self.manifest, inputs)
        native = {name: np.asarray(array, dtype=array.dtype.newbyteorder("=")) for name, array in inputs.items()}
        try:
            outputs = self._engine.run(native)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in native.items())
            hint = f"The inputs were {shapes}. If smaller ones work, memory ran out; otherwise try: compile verify"
            raise CompilerError(doing, first_line(error), hint) from error
        return {spec.name: outputs[spec.name] for spec in self.manifest.outputs}

    def encode(self, texts: Sequence[str]) -> Arrays:
        """The inputs that stand for the texts: one batch, padded to the longest and cut at the model's limit.

        Raises CompilerError when the model takes no text.
        """
        if self.manifest.generation is not None:
            problem, hint = "it continues prompts, with states between its calls", "Give --prompt instead of --text."
            raise CompilerError(f"reading text for {self.manifest.name}", problem, hint)
        return encode_batch(self._tokenizer, texts, {spec.name: spec.dtype for spec in self.manifest.inputs})

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        text = self.manifest.text
        if text is None:
            takes = "; ".join(map(str, self.manifest.inputs))
            hint = f"Give arrays instead, with --input F.npz. It takes {takes}."
            raise CompilerError(f"reading text for {self.manifest.name}", "this artifact has no tokenizer", hint)
        return limited(read_tokenizer(self.folder / text.tokenizer), text)
