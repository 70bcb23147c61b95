"""int3: whole numbers of three bits, eight in three bytes, a float scale and maybe a zero point a block

A plane of two bits and a plane of one; when a model is opened they become codes of four bits, once.
Kernel: MatMulNBits of 4 bits. Source: com.microsoft MatMulNBits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.hookspecs import hookimpl
from compiler.quantization.formats.integer_codes import IntegerCodes
from compiler.quantization.formats.weight_format import WeightFormat


@dataclass(frozen=True)
class Int3(IntegerCodes):
    """8 even steps a block: three bits in the file, four in memory."""

    name: ClassVar[str] = "int3"
    bits: ClassVar[int] = 3
    kernel_bits: ClassVar[int] = 4
    usual_block: ClassVar[int] = 32
    gentler: ClassVar[str | None] = "int4"


@hookimpl
def register_formats() -> list[type[WeightFormat]]:
    """The format of this file."""
    return [Int3]
