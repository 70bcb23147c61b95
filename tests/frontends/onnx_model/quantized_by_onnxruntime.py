"""A small float model, and what ONNX Runtime's own tools make of it: the quantized models that people bring."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

SIZES = (3, 16, 16)
Array = np.ndarray[Any, Any]


def images(count: int, seed: int = 0) -> Array:
    """Inputs [count, 3, 16, 16]."""
    return np.random.default_rng(seed).standard_normal((count, *SIZES)).astype(np.float32)


def small_model(path: Path) -> Path:
    """Two convolutions, a sum, pools, a MatMul with a bias, a Sigmoid and a Gemm; the batch is dynamic."""
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((generator.standard_normal(shape) * 0.2).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "stem.weight", "stem.bias"], ["c"], name="/stem/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "body.weight"], ["d"], name="/body/Conv"),
        helper.make_node("Add", ["d", "d"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "head.weight"], ["m"], name="/head/MatMul"),
        helper.make_node("Add", ["m", "head.bias"], ["h"], name="/head/Add"),
        helper.make_node("Sigmoid", ["h"], ["i"]),
        helper.make_node("Gemm", ["i", "last.weight", "last.bias"], ["y"], name="/last/Gemm", transB=1),
    ]
    stored = [
        weight("stem.weight", 8, 3, 3, 3),
        weight("stem.bias", 8),
        weight("body.weight", 32, 8, 3, 3),
        weight("head.weight", 32, 64),
        weight("head.bias", 64),
        weight("last.weight", 20, 64),
        weight("last.bias", 20),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *SIZES])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 20])
    graph = helper.make_graph(nodes, "small", [given], [result], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


class Calibration(CalibrationDataReader):
    """Four batches of images."""

    def __init__(self) -> None:
        self.batches: Iterator[dict[str, Array]] = iter([{"x": images(4, seed)} for seed in range(4)])

    def get_next(self) -> dict[str, Array] | None:
        """The next batch, or None."""
        return next(self.batches, None)


def static(model: Path, path: Path, **options: Any) -> None:
    """Activations with ranges from calibration."""
    quantize_static(model, path, Calibration(), **options)


QDQ, CODES = QuantFormat.QDQ, QuantFormat.QOperator
FORMS: dict[str, Callable[[Path, Path], None]] = {
    "dynamic": lambda model, path: quantize_dynamic(model, path),
    "dynamic, uint8 weights": lambda model, path: quantize_dynamic(model, path, weight_type=QuantType.QUInt8),
    "dynamic, per channel": lambda model, path: quantize_dynamic(
        model, path, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
    ),
    "QDQ": lambda model, path: static(model, path, quant_format=QDQ),
    "QDQ, per channel": lambda model, path: static(
        model, path, quant_format=QDQ, per_channel=True, activation_type=QuantType.QInt8
    ),
    "QDQ, 16-bit activations": lambda model, path: static(
        model, path, quant_format=QDQ, activation_type=QuantType.QUInt16
    ),
    "QDQ, 4-bit weights": lambda model, path: static(model, path, quant_format=QDQ, weight_type=QuantType.QInt4),
    "QOperator": lambda model, path: static(model, path, quant_format=CODES, activation_type=QuantType.QUInt8),
    "QOperator, per channel": lambda model, path: static(
        model, path, quant_format=CODES, activation_type=QuantType.QUInt8, per_channel=True
    ),
}


def quantized(form: str, folder: Path) -> Path:
    """The small model as ONNX Runtime quantizes it in one of `FORMS`."""
    path = folder / f"{form}.onnx"
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        FORMS[form](small_model(folder / "float.onnx"), path)
    finally:
        logging.disable(disabled)
    return path
