"""int4: whole numbers of four bits, two a byte, a float scale and maybe a zero point a block

Kernel: MatMulNBits of 4 bits. Source: com.microsoft MatMulNBits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.hookspecs import hookimpl
from compiler.quantization.formats.integer_codes import IntegerCodes
from compiler.quantization.formats.weight_format import WeightFormat


@dataclass(frozen=True)
class Int4(IntegerCodes):
    """16 even steps a block."""

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4
    kernel_bits: ClassVar[int] = 4
    usual_block: ClassVar[int] = 32
    gentler: ClassVar[str | None] = "int8"


@hookimpl
def register_formats() -> list[type[WeightFormat]]:
    """The format of this file."""
    return [Int4]
