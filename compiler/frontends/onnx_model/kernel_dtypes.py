"""Dtypes that torch stores and has hardly any kernels for are computed in a wider one, which holds their numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)
WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64} | dict.fromkeys(
    FLOAT8, torch.float32
)
"""uint64 wraps around in int64 and comes back whole: values may be moved and added so, but not compared or divided."""


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in a dtype; tracing records even a cast to the dtype that `x` has, so that one is left out."""
    return x if x.dtype == dtype else x.to(dtype)


def widened(x: Tensor) -> Tensor:
    """`x`, cast to the wider dtype where its own has no kernels."""
    return x.to(WIDER[x.dtype]) if x.dtype in WIDER else x


def moved(move: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`move` of tensors of one dtype, computed in the wider dtype and cast back."""
    return as_dtype(move(*map(widened, tensors)), tensors[0].dtype)
