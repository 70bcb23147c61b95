"""What other libraries make of a checkpoint in few bits: llm-compressor's GPTQ, and the types of llama.cpp."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from llama_cpp_peer import LlamaCppDecoding
from quality_figures import Logits, transformers_logits
from torch import Tensor

HERE = Path(__file__).resolve().parent
LLAMA_CPP, LLM_COMPRESSOR = "llama_cpp", "llmcompressor"
GGUF = "model.gguf"


@dataclass(frozen=True)
class Peer:
    """A script beside this one that takes SOURCE and a target, with more arguments, and the package that it needs."""

    model: str
    package: str
    more: Sequence[str]

    @property
    def installed(self) -> bool:
        """Whether this interpreter has the package."""
        return find_spec(self.package) is not None

    def write(self, source: Path, folder: Path, text: Path | None) -> str:
        """Quantize `source` into `folder`; nothing, or where it failed the last of what it said."""
        command = [sys.executable, str(HERE / f"{self._script}.py"), str(source)]
        if self.package == LLAMA_CPP:
            folder.mkdir(parents=True)
            command += [self.more[0], str(folder / GGUF), *self.more[1:]]
        else:
            command += [str(folder), *self.more, *(("--text", str(text)) if text else ())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.returncode:
            return ""
        shutil.rmtree(folder, ignore_errors=True)
        return "\n".join(done.stderr.strip().splitlines()[-2:])

    def logits(self, folder: Path, window: int, threads: int) -> Logits:
        """What is in `folder`, by the library's own runtime, or by transformers where it has none."""
        if self.package == LLAMA_CPP:
            return _llama_cpp_logits(folder / GGUF, window, threads)
        return transformers_logits(folder, threads)

    @property
    def _script(self) -> str:
        return "llama_cpp_peer" if self.package == LLAMA_CPP else "llm_compressor_peer"


def weight_bytes(folder: Path) -> int:
    """Of files of weights in `folder`."""
    return sum(path.stat().st_size for suffix in ("gguf", "safetensors") for path in folder.glob(f"*.{suffix}"))


def _llama_cpp_logits(path: Path, window: int, threads: int) -> Logits:
    model = LlamaCppDecoding(path, threads, window)

    def run(tokens: np.ndarray) -> Tensor:
        return torch.from_numpy(model.logits(tokens.tolist()))

    return run
