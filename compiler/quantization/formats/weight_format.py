"""WeightFormat: how a weight lies in bytes, and which numbers it can hold: steps times a scale a block of a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from compiler.quantization.modules import PackedBlocks
from compiler.quantization.scales import Clip, Grid

QUANTIZED_LINEAR = "regraft::quantized_linear"


@dataclass(frozen=True)
class WeightFormat(ABC):
    """A format with its settings. Subclasses are frozen dataclasses that add none.

    A weight [rows, width] is [rows, blocks, block_size], the last block padded. `usual_block` numbers share a scale
    unless others are asked for, of `block_sizes` (None: any multiple of 8); 0 stands for all of a row. `operator` is
    the operator of the dialect that `product` is, where it is one: a backend with a kernel for it runs the format fast.
    `gentler` names the format that a budget tries next.
    """

    name: ClassVar[str]
    usual_block: ClassVar[int]
    block_sizes: ClassVar[tuple[int, ...] | None] = None
    takes_zero_points: ClassVar[bool] = False
    learns_rows: ClassVar[bool] = False
    """Whether healing trains one scale an output, beside those of blocks: for scales that are not any number."""
    operator: ClassVar[str | None] = None
    gentler: ClassVar[str | None] = None

    block_size: int
    symmetric: bool | None = None
    clip: Clip = "mse"

    @classmethod
    def check(cls, block: int | None, symmetric: bool | None) -> None:
        """Raises ValueError for settings that the format has not."""
        if symmetric is False and not cls.takes_zero_points:
            raise ValueError(f"format={cls.name} has no zero points: leave symmetric=none")
        if block is None:
            return
        if cls.block_sizes is None:
            if block < 0 or block % 8:
                raise ValueError(f"block={block} is no multiple of 8")
        elif block not in cls.block_sizes:
            raise ValueError(f"format={cls.name} has blocks of {', '.join(map(str, cls.block_sizes))}, not {block}")

    @classmethod
    def for_width(
        cls, width: int, block: int | None = None, symmetric: bool | None = None, clip: Clip = "mse"
    ) -> WeightFormat:
        """The format for rows of `width` numbers; `block` as the option, None: the usual one."""
        cls.check(block, symmetric)
        wanted = cls.usual_block if block is None else block
        enough = next((size for size in cls.block_sizes or () if size >= width), wanted)
        return cls(min(wanted, enough) or width + -width % 8, symmetric, clip)

    @abstractmethod
    def grid(self, blocks: Tensor, importance: Tensor | None = None) -> Grid:
        """The grid for blocks [rows, blocks, block_size]; importance [blocks, block_size] weights the errors."""

    @abstractmethod
    def packed(self, codes: Tensor, grid: Grid) -> PackedBlocks:
        """Codes [rows, blocks, block_size] on their grid, as they are stored."""

    @abstractmethod
    def steps(self, packed: PackedBlocks) -> Tensor:
        """What the codes stand for in units of their scales: float32 [..., blocks, block_size]."""

    def scales(self, packed: PackedBlocks) -> Tensor:
        """The scales as float32 [..., blocks]."""
        return packed.scales.float()

    def refits(self) -> bool:
        """Whether scales may be any numbers, so that they can be fitted to the codes afterwards."""
        return not self.learns_rows

    def stored(self, grid: Grid) -> Grid:
        """A grid with scales as files hold them, where they may be any numbers."""
        return grid.in_half()

    def weight(self, packed: PackedBlocks, width: int) -> Tensor:
        """The definition: the weight float32 [..., width] that the bytes stand for."""
        padded = (self.steps(packed) * self.scales(packed)[..., None]).flatten(-2)
        return padded if padded.shape[-1] == width else padded[..., :width]

    def table(self, packed: PackedBlocks, width: int) -> PackedBlocks:
        """A table that no product shares, as `rows` reads it: scales in half the bytes, where that is exact."""
        if packed.scales.dtype != torch.float32:
            return packed
        halves = packed.scales.half()
        return replace(packed, scales=halves) if torch.equal(halves.float(), packed.scales) else packed

    def rows(self, indices: Tensor, packed: PackedBlocks, width: int) -> Tensor:
        """Rows [..., width] of a table: only those that are asked for are unpacked."""
        points = None if packed.zero_points is None else packed.zero_points[indices]
        taken = replace(packed, weight=packed.weight[indices], scales=packed.scales[indices], zero_points=points)
        return self.weight(taken, width)

    def product(self, x: Tensor, packed: PackedBlocks, bias: Tensor | None) -> Tensor:
        """x [..., width] times the weight [out, width]: by its definition, or as the operator that the format has."""
        return torch.nn.functional.linear(x, self.weight(packed, x.shape[-1]).to(x.dtype), bias)
