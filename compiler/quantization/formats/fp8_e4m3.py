"""fp8-e4m3: floats of 4 exponent and 3 mantissa bits up to 448, a float scale a block or a row

Kernel: none on processors; the weight is converted to float32 when a model is opened, and costs as much time.
Source: Micikevicius et al. 2022, arXiv:2209.05433, table 1; ONNX FLOAT8E4M3FN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.hookspecs import hookimpl
from compiler.quantization.formats.levels import Levels, float_levels
from compiler.quantization.formats.small_float import SmallFloat
from compiler.quantization.formats.weight_format import WeightFormat


@dataclass(frozen=True)
class Fp8E4m3(SmallFloat):
    """Eight bits, 8 steps an octave."""

    name: ClassVar[str] = "fp8-e4m3"
    levels: ClassVar[Levels] = float_levels(exponent_bits=4, mantissa_bits=3, largest=448.0)
    gentler: ClassVar[str | None] = None


@hookimpl
def register_formats() -> list[type[WeightFormat]]:
    """The format of this file."""
    return [Fp8E4m3]
