"""Rounds a weight to the codes of a form, block by block: to the nearest ones, or with errors made up for (GPTQ)."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from compiler.calibration import ActivationStatistics
from compiler.quantization.compensation import Compensation, damped, refitted_scales
from compiler.quantization.modules import PackedBlocks
from compiler.quantization.scales import Grid

NUMBERS_AT_ONCE = 2**22
"""Weights whose codes are looked for together: a search takes a dozen times their memory, which matters for heads."""
TABLE_ROWS_AT_ONCE = 2048
"""Keeps what a search for scales needs in the cache, and memory low for large vocabularies."""


class Form(Protocol):
    """How blocks of `block_size` weights are stored; `refits` says whether scales can be any numbers, and `stored`
    rounds them as files hold them.
    """

    @property
    def block_size(self) -> int: ...
    def grid(self, blocks: Tensor, importance: Tensor | None = None) -> Grid: ...
    def packed(self, codes: Tensor, grid: Grid) -> PackedBlocks: ...
    def refits(self) -> bool: ...
    def stored(self, grid: Grid) -> Grid: ...


def nearest_blocks(weight: Tensor, form: Form) -> PackedBlocks:
    """A weight or table [rows, width] rounded to the nearest codes. Rows are padded up to a whole block."""
    parts = (padded_blocks(part.float(), form) for part in torch.split(weight.detach(), TABLE_ROWS_AT_ONCE))
    grids = ((blocks, form.grid(blocks)) for blocks in parts)
    return PackedBlocks.joined([form.packed(grid.codes(blocks), grid) for blocks, grid in grids])


def compensated_blocks(weight: Tensor, form: Form, statistics: ActivationStatistics) -> PackedBlocks:
    """A weight float32 [out, in] whose rounding makes up for its own errors, on inputs of these statistics."""
    in_features, size = weight.shape[1], form.block_size
    padding = -in_features % size
    firm = damped(statistics.second_moment, statistics.row_count)
    firm = torch.nn.functional.pad(firm, (0, padding, 0, padding))
    firm.diagonal()[in_features:] = firm.diagonal()[:in_features].mean()
    compensation = Compensation(firm)
    rows = max(1, NUMBERS_AT_ONCE // (in_features + padding))
    parts = (padded_blocks(part, form) for part in torch.split(weight, rows))
    return PackedBlocks.joined([_compensated(part, form, firm, compensation) for part in parts])


def padded_blocks(weight: Tensor, form: Form) -> Tensor:
    """weight [rows, width] as [rows, blocks, block_size], the last block filled with zeros."""
    padding = -weight.shape[1] % form.block_size
    return torch.unflatten(torch.nn.functional.pad(weight, (0, padding)), -1, (-1, form.block_size))


def _compensated(blocks: Tensor, form: Form, firm: Tensor, compensation: Compensation) -> PackedBlocks:
    """Some outputs of a layer, [out, blocks, block_size]."""
    size, weight = form.block_size, blocks.flatten(1)
    grid = form.grid(blocks, firm.diagonal().sqrt().reshape(-1, size))
    flat = replace(grid, scale=_per_input(grid.scale, size), zero=_per_input(grid.zero, size))
    codes = compensation.codes(weight, flat).reshape(blocks.shape)
    if form.refits():
        grid = form.stored(replace(grid, scale=refitted_scales(weight, grid, codes, firm)))
    return form.packed(codes, grid)


def _per_input(per_block: Tensor, block_size: int) -> Tensor:
    """[out, blocks, 1] to [out, blocks * block_size]."""
    return per_block[..., 0].repeat_interleave(block_size, -1)
