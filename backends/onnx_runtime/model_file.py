"""Writes an ONNX model: one file, or with its weights beside it where it would pass protobuf's 2 GB."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
PROTOBUF_LIMIT_BYTES = 2**31 - 2**24
"""Protobuf's limit less room for the graph itself."""
MAPPED_ABOVE_BYTES = 2**24
"""A decoder's weights stand beside the graph from here on: ONNX Runtime maps that file, and what it packs into its own
memory or reads a few rows of takes none a second time."""


def write_model(model: ir.Model, folder: Path, external_above_bytes: int = PROTOBUF_LIMIT_BYTES) -> tuple[str, ...]:
    """Write `model` into `folder`; the names of the files. Equal models give equal bytes."""
    if weight_bytes(model) <= external_above_bytes:
        ir.save(model, folder / MODEL_FILE)
        return (MODEL_FILE,)
    ir.save(model, folder / MODEL_FILE, external_data=WEIGHTS_FILE)
    return (MODEL_FILE, WEIGHTS_FILE)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
