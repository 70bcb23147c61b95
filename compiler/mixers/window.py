"""Softmax attention to near tokens and to the first ones: what a hybrid keeps exact, and a graft of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compiler.ops.bidirectional_window_attention import bidirectional_window_attention
from compiler.ops.sliding_window_attention import sliding_window_attention
from compiler.sites import Refusal, Site


def refuse_window(site: Site, window: int) -> Refusal | None:
    """Why attention to `window` tokens and sinks cannot stand in for a token-mixer site; None where it can."""
    bindings = site.bindings
    lowest, highest = bindings["window"]

    def refuse(reason: str) -> Refusal:
        return Refusal(reason, site.output.name, site.name, site.kind)

    if bindings["softcap"]:
        return refuse("its scores are capped, which no windowed form computes")
    if "bias" in bindings["mask"]:
        return refuse("a bias is added to its scores, which no windowed form computes")
    if bindings["value_dim"] != bindings["head_dim"]:
        return refuse("its values are of another width than its keys")
    if any(bindings["merged_masks"]):
        return refuse("its mask has batch and heads as one dim")
    if highest is not None and (highest < 0 or (highest > 0 and lowest != -highest)):
        return refuse(f"its window reaches from {lowest} to {highest}: neither causal nor symmetric")
    if lowest is not None and -lowest < window:
        return refuse(f"its window of {1 - lowest} tokens is no longer than {window}")
    tokens = site.inputs[0].meta["val"].shape[1]
    if isinstance(tokens, int) and tokens <= window:
        return refuse(f"it reads {tokens} tokens, no more than the window")
    return None


class CausalWindow(nn.Module):
    """Each token attends to itself, to the `window - 1` before it and to the first `sinks`. No mask is read.

    Padding stands at the end of a sequence, where no token but padding sees it.
    """

    def __init__(self, window: int, sinks: int, scale: float) -> None:
        super().__init__()
        self.window, self.sinks, self.scale = window, sinks, scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The output [batch, heads, tokens, head_dim] and the log of the sum of exponentials [batch, heads, tokens]."""
        found = sliding_window_attention(
            query, key, value, None, None, None, self.window, self.sinks, self.scale
        )  # fmt: skip
        return found[0], found[1]


class BidirectionalWindow(nn.Module):
    """Each token attends to tokens less than `window` away on either side and to the first `sinks`, as masks allow."""

    def __init__(self, window: int, sinks: int, scale: float) -> None:
        super().__init__()
        self.window, self.sinks, self.scale = window, sinks, scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The output [batch, heads, tokens, head_dim] and the log of the sum of exponentials [batch, heads, tokens]."""
        output, sums = bidirectional_window_attention(
            query, key, value, self._joined(masks), self.window, self.sinks, self.scale
        )
        return output, sums

    def _joined(self, masks: Sequence[Tensor]) -> Tensor | None:
        """All masks as one of four dims. A token sees itself even where it is padding."""
        joined: Tensor | None = None
        for mask in masks:
            joined = allowed(mask) if joined is None else joined & allowed(mask)
        while joined is not None and joined.dim() < 4:
            joined = joined.unsqueeze(0)
        return joined


def allowed(mask: Tensor) -> Tensor:
    """Which keys a boolean mask, or an additive one of zeros and very low numbers, lets through."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def window_of(site: Site, window: int, sinks: int) -> CausalWindow | BidirectionalWindow:
    """The window in the form that the site needs."""
    form = CausalWindow if site.bindings["causal"] else BidirectionalWindow
    return form(window, sinks, float(site.bindings["scale"]))


class WindowedAttention(nn.Module):
    """The window in the place of a token-mixer site."""

    def __init__(self, site: Site, window: int, sinks: int) -> None:
        super().__init__()
        self.window = window_of(site, window, sinks)

    def forward(
        self, hidden: Tensor, raw_query: Tensor, raw_key: Tensor, query: Tensor, key: Tensor, value: Tensor,
        *masks: Tensor,
    ) -> Tensor:  # fmt: skip
        """[batch, heads, tokens, head_dim]; of a token-mixer site's inputs, what attention reads."""
        output: Tensor = self.window(query, key, value, masks)[0]
        return output
