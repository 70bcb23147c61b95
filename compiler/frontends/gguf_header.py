"""Walk the header of a GGUF file and say what is wrong with it, before a reader trusts its counts and offsets.

Source: the GGUF specification, version 3: magic, version, tensor count, key count; keys with typed values; tensors with
their shapes, types and offsets; padding; data.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Size of a value by its type number: integers, floats and bool."""
LARGEST_RANK = 4


class GgufDamageError(Exception):
    """What is wrong with the file, in words."""


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the tensor table: name, shape as stored, number of its quantization type, offset into the data."""

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset_bytes: int


def read_tensor_table(path: Path) -> list[GgufTensor]:
    """The tensor table. Raises GgufDamageError when the header or the data do not fit into the file."""
    with path.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file cannot be mapped
            raise GgufDamageError("it is empty") from error
        with content:
            return _Walk(content).tensors()


class _Walk:
    """A position in the file that moves forward and never past its end."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.position = 0

    def tensors(self) -> list[GgufTensor]:
        if self._bytes(len(MAGIC)) != MAGIC:
            raise GgufDamageError("it does not begin with the letters GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            raise GgufDamageError(f"it has version {version}; versions 2 and 3 are read")
        tensor_count, key_count = self._count(24), self._count(12)
        alignment = 32
        for _ in range(key_count):
            key, kind = self._string(), self._number("I")
            if key == b"general.alignment" and kind == 4:
                alignment = max(1, self._number("I"))
            else:
                self._skip_value(kind)
        table = [self._tensor() for _ in range(tensor_count)]
        start = -(-self.position // alignment) * alignment
        for tensor in table:
            end = start + tensor.offset_bytes + _bytes_of(tensor)
            if end > len(self.content):
                raise GgufDamageError(
                    f"the data of {tensor.name} ends {end - len(self.content):,} bytes behind the file's end"
                )
        return table

    def _tensor(self) -> GgufTensor:
        name = self._string().decode("utf-8", errors="replace")
        rank = self._number("I")
        if rank > LARGEST_RANK:
            raise GgufDamageError(f"{name!r} has {rank} dims")
        shape = tuple(self._number("Q") for _ in range(rank))
        return GgufTensor(name, shape, self._number("I"), self._number("Q"))

    def _skip_value(self, kind: int) -> None:
        if kind in VALUE_BYTES:
            self._bytes(VALUE_BYTES[kind])
        elif kind == STRING:
            self._string()
        elif kind == ARRAY:
            item_kind = self._number("I")
            if item_kind in VALUE_BYTES:
                self._bytes(self._number("Q") * VALUE_BYTES[item_kind])
            elif item_kind == STRING:
                for _ in range(self._count(8)):
                    self._string()
            else:
                raise GgufDamageError(f"an array holds values of the unknown type {item_kind}")
        else:
            raise GgufDamageError(f"a value has the unknown type {kind}")

    def _count(self, least_bytes: int) -> int:
        """A number of things that follow, each of which takes at least so many bytes."""
        count = self._number("Q")
        if count * least_bytes > len(self.content) - self.position:
            raise GgufDamageError(f"it announces {count:,} entries and ends before them")
        return count

    def _string(self) -> bytes:
        return self._bytes(self._number("Q"))

    def _number(self, form: str) -> int:
        size = struct.calcsize(f"<{form}")
        (number,) = struct.unpack(f"<{form}", self._bytes(size))
        return int(number)

    def _bytes(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.content):
            raise GgufDamageError("it ends in the middle of its header")
        found = self.content[self.position : end]
        self.position = end
        return found


def _bytes_of(tensor: GgufTensor) -> int:
    """Bytes of the tensor's data. Raises GgufDamageError for a type that the gguf package does not know."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block_size, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type_number)]
    except (ValueError, KeyError) as error:
        raise GgufDamageError(f"{tensor.name} has the unknown type {tensor.type_number}") from error
    return math.prod(tensor.shape) // int(block_size) * int(block_bytes)
