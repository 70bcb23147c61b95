"""How much faster than its site a stand-in is, asked of the backend that a compile lowers with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from compiler.program import Program
    from compiler.rewriting import PassContext, Replacement
    from compiler.sites import Site

LEAST_GAIN = 1.03
"""What is gained at least where something is gained: timings of equals differ by as much."""


def measured_gain(program: Program, site: Site, stand_in: nn.Module, tokens: int, context: PassContext) -> float | None:
    """Seconds of `site` over those of `stand_in`, each alone, at so many tokens a call; None where nothing is lowered,
    or one of them cannot be lowered alone.
    """
    if context.backend is None:
        return None
    from compiler.evidence.site_speed import SpeedMeter

    speeds = SpeedMeter(context.backend, context.target).compare(program, site, stand_in.eval(), (tokens,))
    return None if isinstance(speeds, str) else speeds[0].gain


def told(gain: float, tokens: int) -> str:
    """A gain in words."""
    return f"{gain:.2f} times as fast as what is there at {tokens} {'token' if tokens == 1 else 'tokens'} a call"


def check_tokens(name: str, tokens: int | None) -> None:
    """Raises ValueError for an option that is no number of tokens."""
    if tokens is not None and not 1 <= tokens <= 2**20:
        raise ValueError(f"{name}={tokens} is not from 1 to {2**20}")


def does_not_pay(
    program: Program, site: Site, proposal: Replacement, tokens: int | None, context: PassContext
) -> str | None:
    """Why a stand-in is not worth its place at so many tokens a call (None: that is not asked), by measurement."""
    gain = None if tokens is None else measured_gain(program, site, proposal.module, tokens, context)
    return None if gain is None or tokens is None or gain >= LEAST_GAIN else f"it would be {told(gain, tokens)}"
