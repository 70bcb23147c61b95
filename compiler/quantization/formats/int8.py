"""int8: whole numbers of eight bits, one a byte, a float scale a block

Kernel: MatMulNBits of 8 bits. Source: com.microsoft MatMulNBits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.hookspecs import hookimpl
from compiler.quantization.formats.integer_codes import IntegerCodes
from compiler.quantization.formats.weight_format import WeightFormat


@dataclass(frozen=True)
class Int8(IntegerCodes):
    """256 even steps a block."""

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8
    kernel_bits: ClassVar[int] = 8
    usual_block: ClassVar[int] = 128
    gentler: ClassVar[str | None] = None


@hookimpl
def register_formats() -> list[type[WeightFormat]]:
    """The format of this file."""
    return [Int8]
