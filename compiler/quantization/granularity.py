"""Scales and zero points of a tensor, of an axis or of blocks, spread so that they broadcast to what they hold for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def spread(parameter: Tensor, shape: Sequence[Any], axis: int, block_size: int) -> Tensor:
    """`parameter` as a tensor that broadcasts to `shape`.

    One number holds for all; a vector for the slices along `axis`; with `block_size`, a tensor of the rank of `shape`
    holds for blocks of that many slices along `axis`, the last of which may be cut short.
    Raises ValueError where it fits none of these.
    """
    if parameter.dim() == 0 or (parameter.dim() == 1 and parameter.shape[0] == 1):
        return parameter.reshape(())
    axis %= len(shape)
    if block_size:
        if parameter.dim() != len(shape):
            raise ValueError(f"{parameter.dim()}-d scales of blocks for {len(shape)}-d values")
        if parameter.shape[axis] == 1:
            return parameter
        return parameter.repeat_interleave(block_size, dim=axis).narrow(axis, 0, shape[axis])
    if parameter.dim() != 1:
        raise ValueError(f"{parameter.dim()}-d scales without a block size")
    return parameter.reshape([-1 if index == axis else 1 for index in range(len(shape))])


def gathered(gradient: Tensor, parameter: Tensor, axis: int, block_size: int) -> Tensor:
    """The sum of `gradient` over what each number of `parameter` holds for, in its shape: the adjoint of `spread`."""
    if parameter.numel() == 1:
        return gradient.sum().reshape(parameter.shape)
    axis %= gradient.dim()
    if block_size and parameter.shape[axis] == 1:
        return gradient.sum(axis, keepdim=True)
    if not block_size:
        return gradient.movedim(axis, 0).flatten(1).sum(1) if gradient.dim() > 1 else gradient
    blocks = torch.arange(gradient.shape[axis], device=gradient.device) // block_size
    total = gradient.new_zeros(parameter.shape)
    return total.index_add(axis, blocks, gradient)
