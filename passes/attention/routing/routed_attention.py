"""A layer that reads its whole context with a router and then runs one of two attentions: all tokens, or a window.

The other one is not run at all: in the lowered graph the two are the branches of an If.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.cond import cond_op

import compiler.ops.attention  # noqa: F401  (registers the op)
from compiler.mixers.window import BidirectionalWindow, CausalWindow, allowed, window_of
from compiler.sites import Site


def pooled(hidden: Tensor) -> Tensor:
    """What a router sees of hidden states [batch, tokens, width]: mean and maximum over tokens, [batch, 2 * width]."""
    return torch.cat([hidden.mean(1), hidden.amax(1)], 1)


class Router(nn.Module):
    """A linear classifier of pooled hidden states: positive where the context needs full attention."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """weight [2 * width], bias []."""
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Of hidden states [batch, tokens, width] one number a context: [batch]."""
        return pooled(hidden) @ self.weight + self.bias


class FullAttention(nn.Module):
    """What the site computes, with masks that a boolean one says as well."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.scale = float(site.bindings["scale"])
        self.causal_alone = bool(site.bindings["causal"]) and site.bindings["mask"] == "causal"

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *masks: Tensor) -> Tensor:
        """[batch, heads, tokens, head_dim]."""
        seen: Tensor | None = None
        for mask in () if self.causal_alone else masks:
            seen = allowed(mask) if seen is None else seen & allowed(mask)
        output: Tensor = torch.ops.regraft.attention(query, key, value, seen, self.causal_alone, self.scale, 0.0)
        return output


class RoutedAttention(nn.Module):
    """Full attention for a batch with a context that needs it, otherwise the window."""

    def __init__(self, site: Site, window: int, sinks: int, router: Router) -> None:
        super().__init__()
        self.router = router
        self.full = FullAttention(site)
        self.window: CausalWindow | BidirectionalWindow = window_of(site, window, sinks)

    def forward(
        self, hidden: Tensor, raw_query: Tensor, raw_key: Tensor, query: Tensor, key: Tensor, value: Tensor,
        *masks: Tensor,
    ) -> Tensor:  # fmt: skip
        """[batch, heads, tokens, head_dim], of a token-mixer site's inputs."""
        needed = (self.router(hidden) > 0).any()
        if not torch.compiler.is_compiling():
            return self.full(query, key, value, *masks) if bool(needed) else self._near(query, key, value, *masks)[0]
        found: Any = cond_op(needed, self._all, self._near, (query, key, value, *masks))
        output: Tensor = found[0]
        return output

    def _all(self, query: Tensor, key: Tensor, value: Tensor, *masks: Tensor) -> tuple[Tensor]:
        return (self.full(query, key, value, *masks),)

    def _near(self, query: Tensor, key: Tensor, value: Tensor, *masks: Tensor) -> tuple[Tensor]:
        return (self.window(query, key, value, masks)[0].contiguous(),)
