"""int2: whole numbers of two bits, four a byte, a float scale and maybe a zero point a block

Kernel: MatMulNBits of 2 bits. Source: com.microsoft MatMulNBits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.hookspecs import hookimpl
from compiler.quantization.formats.integer_codes import IntegerCodes
from compiler.quantization.formats.weight_format import WeightFormat


@dataclass(frozen=True)
class Int2(IntegerCodes):
    """4 even steps a block."""

    name: ClassVar[str] = "int2"
    bits: ClassVar[int] = 2
    kernel_bits: ClassVar[int] = 2
    usual_block: ClassVar[int] = 32
    gentler: ClassVar[str | None] = "int4"


@hookimpl
def register_formats() -> list[type[WeightFormat]]:
    """The format of this file."""
    return [Int2]
