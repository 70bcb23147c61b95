"""ONNX element types and the torch dtypes that carry them.

Types of four and two bits have no torch dtype with arithmetic: integers travel in int8 or uint8, float4 as float32 on
its grid of 16 numbers. Where such a type matters (casts, quantizing), operators ask for the ONNX type beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import onnx_ir as ir

CARRIERS: dict[str, torch.dtype] = {
    "FLOAT": torch.float32,
    "DOUBLE": torch.float64,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT16": torch.int16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "BOOL": torch.bool,
    "COMPLEX64": torch.complex64,
    "COMPLEX128": torch.complex128,
    "FLOAT8E4M3FN": torch.float8_e4m3fn,
    "FLOAT8E4M3FNUZ": torch.float8_e4m3fnuz,
    "FLOAT8E5M2": torch.float8_e5m2,
    "FLOAT8E5M2FNUZ": torch.float8_e5m2fnuz,
    "FLOAT8E8M0": torch.float8_e8m0fnu,
    "INT4": torch.int8,
    "UINT4": torch.uint8,
    "INT2": torch.int8,
    "UINT2": torch.uint8,
    "FLOAT4E2M1": torch.float32,
}
"""By the name of the ONNX type."""

BIT_PATTERNS = {
    torch.bfloat16: np.int16,
    torch.float8_e4m3fn: np.uint8,
    torch.float8_e4m3fnuz: np.uint8,
    torch.float8_e5m2: np.uint8,
    torch.float8_e5m2fnuz: np.uint8,
    torch.float8_e8m0fnu: np.uint8,
}
"""numpy's view of types that numpy itself does not have."""


def carrier(data_type: ir.DataType) -> torch.dtype:
    """The torch dtype that carries an ONNX element type. Raises ValueError for strings and undefined types."""
    try:
        return CARRIERS[data_type.name]
    except KeyError:
        raise ValueError(f"there are no tensors of {data_type.name.lower()} here") from None


def dtype_of(number: int) -> torch.dtype:
    """The torch dtype that carries the ONNX element type of a number, as in attributes. Raises ValueError as above."""
    import onnx_ir as ir

    return carrier(ir.DataType(number))


def tensor_from_numpy(array: np.ndarray[Any, Any], data_type: ir.DataType) -> Tensor:
    """A tensor with the numbers of `array`, which has numpy's (or ml_dtypes') form of `data_type`. May share memory."""
    dtype = carrier(data_type)
    if dtype in BIT_PATTERNS:
        bits = np.ascontiguousarray(array).view(BIT_PATTERNS[dtype]).reshape(array.shape)
        return torch.from_numpy(_writable(bits)).view(dtype)
    wanted = torch.empty(0, dtype=dtype).numpy().dtype
    if array.dtype != wanted:
        array = array.astype(np.float32).astype(wanted) if data_type.name == "FLOAT4E2M1" else array.astype(wanted)
    return torch.from_numpy(_writable(np.ascontiguousarray(array).reshape(array.shape)))


def _writable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array if array.flags.writeable else array.copy()
