"""A layer that reads the first tokens of a sequence with a router and then attends to all tokens, or to a window.

The router is done where the first token may do without some token, so that what a token sees depends on no later one
and pieces of a sequence give what the whole gives. In the lowered graph what is not asked for is not run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compiler.ops.context_score import context_score
from compiler.ops.routed_attention import routed_attention
from compiler.sites import Site


def pooled(hidden: Tensor, first: int) -> Tensor:
    """What a router sees of hidden states [batch, tokens, width]: mean and maximum of the first, [batch, 2 * width]."""
    return torch.cat([hidden[:, :first].mean(1), hidden[:, :first].amax(1)], 1)


class Router(nn.Module):
    """A linear classifier of pooled hidden states: positive where the context needs all tokens."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """weight [2 * width], bias []."""
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, hidden: Tensor, first: int) -> Tensor:
        """Of hidden states [batch, tokens, width] one number a sequence: [batch]."""
        score: Tensor = context_score(hidden, self.weight, self.bias, None, None, first)[0]
        return score


class RoutedAttention(nn.Module):
    """All tokens for a sequence that needs them, otherwise the window; the first tokens see all before them."""

    def __init__(self, site: Site, window: int, sinks: int, context: int, router: Router) -> None:
        super().__init__()
        self.window, self.sinks, self.context = window, sinks, context
        self.scale = float(site.bindings["scale"])
        self.router = router

    def forward(
        self, hidden: Tensor, raw_query: Tensor, raw_key: Tensor, query: Tensor, key: Tensor, value: Tensor,
        *masks: Tensor,
    ) -> Tensor:  # fmt: skip
        """[batch, heads, tokens, head_dim], of a token-mixer site's inputs. Padding stands at the end."""
        score = self.router(hidden, self.context)
        output: Tensor = routed_attention(
            query, key, value, score, None, None, None, 0, self.window, self.sinks, self.context, self.scale
        )[0]
        return output
