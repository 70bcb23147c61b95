"""Arithmetic on the dtypes that torch stores but hardly computes with: uint16, uint32 and uint64.

uint16 and uint32 fit into int64. uint64 shares int64's bits, so that sums, differences and products come out right as
they are; order and division differ, and are written out here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])
STORED_ONLY = frozenset({torch.uint16, torch.uint32, torch.uint64})
LOWEST = -(2**63)
"""Adding it to int64 (modulo 2**64) sorts the numbers as unsigned ones."""


def in_int64(function: Function) -> Function:
    """Let a function of tensors of stored-only dtypes compute in int64; integers come back in the dtype they had."""

    @functools.wraps(function)
    def compute(*arguments: Any, **keywords: Any) -> Any:
        stored = next((one.dtype for one in arguments if _is_stored_only(one)), None)
        if stored is None:
            return function(*arguments, **keywords)
        result = function(*(one.long() if _is_stored_only(one) else one for one in arguments), **keywords)
        return result.to(stored) if result.dtype == torch.int64 else result

    return compute  # type: ignore[return-value]


def _is_stored_only(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.dtype in STORED_ONLY


def in_unsigned_order(function: Function) -> Function:
    """Let a function of order alone (comparison, maximum) see uint64 as int64 in the same order."""

    @functools.wraps(function)
    def compute(*arguments: Any, **keywords: Any) -> Any:
        if not any(isinstance(one, Tensor) and one.dtype == torch.uint64 for one in arguments):
            return in_int64(function)(*arguments, **keywords)
        result = function(*(_shifted(one) for one in arguments), **keywords)
        return (result ^ LOWEST).to(torch.uint64) if result.dtype == torch.int64 else result

    return compute  # type: ignore[return-value]


def _shifted(argument: Any) -> Any:
    """A uint64 tensor as int64 minus 2**63; a number likewise."""
    return argument.long() ^ LOWEST if isinstance(argument, Tensor) else argument + LOWEST


def divided(left: Tensor, right: Tensor) -> Tensor:
    """The quotient of uint64 tensors, as int64 with the same bits: half the dividend at first, then one correction."""
    a, b = left.long(), right.long()
    halved = (a >> 1) & (2**63 - 1)
    quotient = torch.div(halved, b.clamp(min=1), rounding_mode="trunc") << 1
    remainder = a - quotient * b
    quotient = quotient + ((remainder ^ LOWEST) >= (b ^ LOWEST)).long()
    return torch.where(b < 0, ((a ^ LOWEST) >= (b ^ LOWEST)).long(), quotient)
