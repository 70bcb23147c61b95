"""What --budget says: `size=0.35` or `size=20MB`, `flops=0.5`, `latency=0.6` or `latency=8ms`.

A share is one of what the model has before any stand-in: weights as float32, FLOPs of its graph, the time that the
lowered model takes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from compiler.errors import CompilerError, nearest_hint

Quantity = Literal["size", "flops", "latency"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
UNITS: dict[str, dict[str, float]] = {
    "size": {"kB": 1e3, "MB": 1e6, "GB": 1e9},
    "flops": {},
    "latency": {"ms": 1e-3, "s": 1.0},
}
"""By quantity, what a unit is of bytes or of seconds."""
NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([A-Za-z]*)")
HINT = "Write --budget size=0.35, size=20MB, flops=0.5, latency=0.6 or latency=8ms."


@dataclass(frozen=True)
class Limit:
    """At most so much of a quantity: a share of what the model has, or with a unit bytes or seconds."""

    quantity: Quantity
    amount: float
    unit: str = ""

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read `size=0.35`. Raises ValueError for what it cannot mean."""
        name, equals, value = text.partition("=")
        quantity = next((one for one in QUANTITIES if one == name), None)
        if not equals or quantity is None:
            raise ValueError(f"{text!r} is none of {', '.join(f'{one}=...' for one in QUANTITIES)}")
        read = NUMBER.fullmatch(value)
        if read is None or read[2] not in ("", *UNITS[quantity]):
            units = " or ".join(UNITS[quantity])
            raise ValueError(f"{value!r} is no share from 0 to 1" + (f" and no number of {units}" if units else ""))
        amount = float(read[1])
        if read[2] and amount <= 0:
            raise ValueError(f"{text}: an amount is above 0")
        if not read[2] and not 0 < amount <= 1:
            raise ValueError(f"{text}: a share is above 0 and at most 1")
        return cls(quantity, amount, read[2])

    def of(self, whole: float) -> float:
        """Bytes, FLOPs or seconds, where the model has `whole` of them."""
        return self.amount * (UNITS[self.quantity][self.unit] if self.unit else whole)

    def share(self, amount: float, whole: float) -> str:
        """An amount in the words of this limit: a share, or a number with its unit."""
        if self.unit:
            return f"{amount / UNITS[self.quantity][self.unit]:.4g}{self.unit}"
        return f"{amount / whole:.4g}"

    def __str__(self) -> str:
        return f"{self.quantity}={self.amount:g}{self.unit}"


def read_limits(texts: Sequence[str]) -> tuple[Limit, ...]:
    """Limits, each quantity once. Raises ValueError for what they cannot mean."""
    limits = tuple(Limit.parse(text) for text in texts)
    for index, limit in enumerate(limits):
        if limit.quantity in [earlier.quantity for earlier in limits[:index]]:
            raise ValueError(f"{limit.quantity} is given twice")
    return limits


def check_budget(texts: Sequence[str]) -> None:
    """Raises CompilerError for a --budget that says nothing."""
    try:
        read_limits(texts)
    except ValueError as error:
        names = [text.partition("=")[0] for text in texts]
        wrong = next((name for name in names if name not in QUANTITIES), "")
        hint = nearest_hint(wrong, QUANTITIES, HINT) if wrong else HINT
        raise CompilerError(f"reading --budget {' '.join(texts)}", str(error), hint) from None
