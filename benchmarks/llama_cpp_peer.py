"""llama.cpp through llama-cpp-python: quantizing as its own tool does, and decoding through its C interface.

    python benchmarks/llama_cpp_peer.py SOURCE.gguf q4_0 TARGET.gguf [--pure]

The tool's defaults are kept: a tied output is stored in 8 bits next to 4-bit layers (with --pure in the same type), the
cache in float16, prompts are read in batches of 2,048 and micro-batches of 512, flash attention is its own choice.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

BUFFERS = ("all", "repacked", "plain")
"""How weights are kept: as llama.cpp chooses (AMX first), repacked for AVX-512, or as they are in the file."""
LAYER_PRODUCTS = rb"blk\.[0-9]+\.(attn_(q|k|v|output)|ffn_(gate|up|down))\.weight"
TYPES = {kind: f"LLAMA_FTYPE_MOSTLY_{kind.upper()}" for kind in ("q8_0", "q4_0", "q3_K_S")}


def quantize(source: Path, kind: str, target: Path, pure: bool = False) -> None:
    """Write `source` anew in another type; a source that is quantized already is taken for the float weights it holds.

    Tensors whose rows do not fit the type are stored in a larger one, which llama.cpp chooses.

    Raises SystemExit when llama.cpp refuses.
    """
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, TYPES[kind])
    options.allow_requantize = True
    options.pure = pure
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(options)):
        raise SystemExit(f"llama.cpp could not write {target}")


class LlamaCppDecoding:
    """A GGUF file in llama.cpp."""

    def __init__(self, path: Path, threads: int, context: int, buffers: str = "all") -> None:
        """`buffers` is one of BUFFERS."""
        import llama_cpp

        llama_cpp.llama_backend_init()
        self._library = llama_cpp
        features = [name for name in ("AVX512_VNNI", "AMX_INT8") if f"{name} = 1" in self._system_info()]
        features = [name for name in features if buffers == "all" or not name.startswith("AMX")]
        self.version = " ".join([f"llama-cpp-python {llama_cpp.__version__}", *features, f"buffers {buffers}"])
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = buffers == "all"
        if buffers == "repacked":
            self._kept = _repack_layers(llama_cpp, parameters)
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), parameters)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = context
        options.n_threads = options.n_threads_batch = threads
        self._batch = options.n_batch
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def read(self, tokens: list[int]) -> int:
        self._library.llama_memory_clear(self._memory, False)
        for start in range(0, len(tokens), self._batch):
            self._run(tokens[start : start + self._batch])
        return self._choose()

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Of every position [tokens, vocabulary], from an empty cache."""
        self._library.llama_memory_clear(self._memory, False)
        batch = self._library.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, True
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        failed = self._library.llama_decode(self._context, batch)
        self._library.llama_batch_free(batch)
        if failed:
            raise SystemExit("llama.cpp could not read the tokens")
        rows: Any = self._library.llama_get_logits(self._context)
        return np.array(np.ctypeslib.as_array(rows, shape=(len(tokens), self._vocabulary)))

    def take_back(self, length: int) -> None:
        self._library.llama_memory_seq_rm(self._memory, 0, length, -1)

    def decode(self, token: int, count: int) -> None:
        for _ in range(count):
            self._run([token])
            token = self._choose()

    def _run(self, tokens: list[int]) -> None:
        ids = (self._library.llama_token * len(tokens))(*tokens)
        if self._library.llama_decode(self._context, self._library.llama_batch_get_one(ids, len(tokens))):
            raise SystemExit("llama.cpp could not read the tokens")

    def _choose(self) -> int:
        logits: Any = self._library.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocabulary,)).argmax())

    def _system_info(self) -> str:
        info: bytes = self._library.llama_print_system_info()
        return info.decode()


class _Override(ctypes.Structure):
    """llama_model_tensor_buft_override: tensors whose names match go into buffers of this type."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def _repack_layers(llama_cpp: Any, parameters: Any) -> Any:
    """Have the layers' products repacked for AVX-512. What is returned must outlive the loading."""
    libraries = Path(llama_cpp.__file__).parent / "lib"
    ggml, base = (ctypes.CDLL(str(libraries / name)) for name in ("libggml.so", "libggml-base.so"))
    handle = ctypes.c_void_p
    for function in (ggml.ggml_backend_dev_by_type, base.ggml_backend_dev_backend_reg):
        function.restype = handle
    base.ggml_backend_reg_get_proc_address.restype = handle
    base.ggml_backend_buft_name.restype = ctypes.c_char_p
    device = handle(ggml.ggml_backend_dev_by_type(0))
    registry = handle(base.ggml_backend_dev_backend_reg(device))
    address = base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    types = ctypes.CFUNCTYPE(ctypes.POINTER(handle), handle)(address)(device)
    found = {}
    for one in itertools.takewhile(bool, (types[index] for index in itertools.count())):
        found[base.ggml_backend_buft_name(handle(one))] = one
    overrides = (_Override * 2)(_Override(LAYER_PRODUCTS, found[b"CPU_REPACK"]), _Override(None, None))
    parameters.tensor_buft_overrides = ctypes.cast(overrides, handle)
    return overrides


def working_buffers(path: Path) -> str:
    """The first of BUFFERS with which a prompt can be read, in a process of its own: some machines fault on AMX."""
    for buffers in BUFFERS:
        code = (
            f"from llama_cpp_peer import *; LlamaCppDecoding(Path({str(path)!r}), 1, 512, {buffers!r}).read([1] * 64)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, check=False)
        if done.returncode == 0:
            return buffers
    raise SystemExit(f"llama.cpp reads no prompt with {path}")


def main() -> None:
    """Quantize a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("kind", choices=TYPES)
    parser.add_argument("target", type=Path)
    parser.add_argument("--pure", action="store_true", help="the tied table too, which llama.cpp keeps in 8 bits")
    arguments = parser.parse_args()
    quantize(arguments.source, arguments.kind, arguments.target, arguments.pure)


if __name__ == "__main__":
    main()
