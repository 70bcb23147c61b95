"""Trains the router of one layer: logistic regression on pooled hidden states, the model around it as it was.

Contexts that need full attention and are sent to a window lose what they are about; the other mistake only costs time.
So after the fit the bias moves until every context that needs full attention, and was learned from, gets it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.passes.attention.routing.routed_attention import Router

RIDGE = 1e-3
MARGIN = 1.0
"""In units of log odds, on the safe side of what was learned from."""
HELD_OUT = 3
"""One context in so many is not learned from."""
STEPS = 100


@dataclass(frozen=True)
class Judged:
    """Where a router sends contexts that it has not learned from: those that need full attention, and the others."""

    full: int
    needing: int
    near: int
    others: int

    def __str__(self) -> str:
        return (
            f"of contexts held out, {self.near} of {self.others} that lose little get the window, {self.full} of "
            f"{self.needing} others full attention"
        )


def trained_router(seen: Tensor, needs: Tensor, kinds: Sequence[str]) -> tuple[Router, Judged]:
    """A router from what it sees of contexts [contexts, 2 * width], whether each needs full attention [contexts], and
    of what kind each is: of every kind some are held out.
    """
    held = _held_out(kinds)
    router = _fitted(seen[~held].float(), needs[~held])
    sent = (seen[held].float() @ router.weight + router.bias).detach() > 0
    wanted = needs[held]
    return router, Judged(
        full=int((sent & wanted).sum()),
        needing=int(wanted.sum()),
        near=int((~sent & ~wanted).sum()),
        others=int((~wanted).sum()),
    )


def _held_out(kinds: Sequence[str]) -> Tensor:
    """bool [contexts]: every third of a kind."""
    counts: dict[str, int] = {}
    held = []
    for kind in kinds:
        counts[kind] = counts.get(kind, 0) + 1
        held.append(counts[kind] % HELD_OUT == 0)
    return torch.tensor(held)


def _fitted(seen: Tensor, needs: Tensor) -> Router:
    mean, spread = seen.mean(0), seen.std(0).clamp(min=1e-6) * math.sqrt(seen.shape[1])
    x = (seen - mean) / spread  # [contexts, 2 * width]
    labels = needs.to(x.dtype)
    share = labels.mean().clamp(0.01, 0.99)
    importance = torch.where(needs, 0.5 / share, 0.5 / (1 - share))  # both sides count alike
    weight = torch.zeros(x.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        errors = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, labels, importance)
        total = errors + RIDGE * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        if bool(needs.any()):
            bias += (MARGIN - (x @ weight + bias)[needs].min()).clamp(min=0)
        return Router(weight / spread, bias - (mean / spread) @ weight)
