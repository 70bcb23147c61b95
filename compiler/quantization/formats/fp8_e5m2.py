"""fp8-e5m2: floats of 5 exponent and 2 mantissa bits up to 57344, a float scale a block or a row

Kernel: none on processors; the weight is converted to float32 when a model is opened, and costs as much time.
Source: Micikevicius et al. 2022, arXiv:2209.05433, table 1; ONNX FLOAT8E5M2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.hookspecs import hookimpl
from compiler.quantization.formats.levels import Levels, float_levels
from compiler.quantization.formats.small_float import SmallFloat
from compiler.quantization.formats.weight_format import WeightFormat


@dataclass(frozen=True)
class Fp8E5m2(SmallFloat):
    """Eight bits, 4 steps an octave."""

    name: ClassVar[str] = "fp8-e5m2"
    levels: ClassVar[Levels] = float_levels(exponent_bits=5, mantissa_bits=2, largest=57344.0)
    gentler: ClassVar[str | None] = "fp8-e4m3"


@hookimpl
def register_formats() -> list[type[WeightFormat]]:
    """The format of this file."""
    return [Fp8E5m2]
