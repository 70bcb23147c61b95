"""Payloads of the ONNX Runtime backend."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from compiler.runtime.engines import Engine
from compiler.runtime.manifest import Manifest

FATAL_ONLY = 4
TILED_ATTENTION_OFF = "ORT_GQA_DISABLE_FLASH_ATTENTION"
"""Read by ONNX Runtime when it makes the kernels of a session."""


class OnnxRuntimeEngine(Engine):
    """An onnxruntime.InferenceSession, as `session`."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self._output_names = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        values = self.session.run(self._output_names, dict(inputs))
        return dict(zip(self._output_names, values, strict=True))

    @property
    def input_specs(self) -> list[tuple[str, str, list[int | str | None]]]:
        """Name, ONNX type text and shape of every input."""
        return [(item.name, item.type, list(item.shape)) for item in self.session.get_inputs()]


def open_payload(entry: Path, manifest: Manifest, threads: int | None) -> Engine:
    """Open the artifact's .onnx; the manifest's `options` are session configuration entries.

    A decoder gets no arena: it is no faster with one, which would keep the scratch memory of the longest prompt. With
    an int8 cache it gets no tiled attention either: a token behind 8,000 takes 7 to 10 % longer with it, since values
    of a tile become floats in a buffer before they are multiplied; prompts take equally long.
    """
    configuration = {key: str(value) for key, value in manifest.runtime.options.items()}
    with _whole_attention() if _caches_int8(manifest) else nullcontext():
        return open_onnx(entry, threads, configuration, arena=manifest.generation is None)


def open_onnx(
    path: Path, threads: int | None, configuration: Mapping[str, str] | None = None, arena: bool = True
) -> OnnxRuntimeEngine:
    """Open any .onnx file on the processor. `threads` None: OMP_NUM_THREADS, or else ONNX Runtime's own choice."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.enable_cpu_mem_arena = arena
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if threads is None and asked.isdecimal():  # which ONNX Runtime itself passes over
        threads = int(asked)
    if threads is not None:
        options.intra_op_num_threads = threads
    for key, value in (configuration or {}).items():
        options.add_session_config_entry(key, value)
    return OnnxRuntimeEngine(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))


def _caches_int8(manifest: Manifest) -> bool:
    if manifest.generation is None:
        return False
    pasts = {state.past for state in manifest.generation.states}
    return any(spec.name in pasts and spec.dtype == "int8" for spec in manifest.inputs)


@contextmanager
def _whole_attention() -> Iterator[None]:
    """Attention of sessions opened meanwhile scores all keys before it weighs values, unless the user has chosen."""
    if TILED_ATTENTION_OFF in os.environ:
        yield
        return
    os.environ[TILED_ATTENTION_OFF] = "1"
    try:
        yield
    finally:
        del os.environ[TILED_ATTENTION_OFF]
