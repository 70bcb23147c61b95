"""Functions of one number, applied to each: signs, rounding, roots, exponentials, trigonometry."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.frontends.onnx_model.operator_table import Value, operator
from compiler.frontends.onnx_model.operators.unsigned_integers import STORED_ONLY

FUNCTIONS = {
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
"""Operators that are one function of torch in all their versions. Both round halves to even."""


def _one_to_one(name: str) -> None:
    function = FUNCTIONS[name]

    @operator(name)
    def apply(x: Tensor) -> Tensor:
        return function(x)


for _name in FUNCTIONS:
    _one_to_one(_name)


@operator("Identity")
def identity(x: Value) -> Value:
    return x


@operator("Abs")
def abs_(x: Tensor) -> Tensor:
    return x if x.dtype in STORED_ONLY else torch.abs(x)


@operator("Sign")
def sign(x: Tensor) -> Tensor:
    return (x != 0).to(x.dtype) if x.dtype in STORED_ONLY else torch.sign(x)
