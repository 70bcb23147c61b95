"""Hybrids: softmax over near tokens and the first ones, a mixer over all others, and a share a head between the two.

Attention gives a mixer's tokens the share that softmax would give them if their scores were all z: with n tokens that
the window does not see and the window's log of the sum of exponentials l,

    share = n exp(z) / (n exp(z) + exp(l)) = sigmoid(z + log n - l)

z is a linear function of the hidden state, which starts low, and of how well the mixer matches the query: values have
one more number, always 1, and what the mixer makes of it says how much of what was written answers the query. In an
encoder two mixers, forwards and backwards, have a share each. A token that the window sees is in no mixer: what it
wrote is delayed by the window; sinks write nothing.
Source: Munkhdalai et al. 2024, arXiv:2404.07143, section 2.1.3 (a gate between local attention and a memory); the form
of the share is the softmax over both parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compiler.mixers.mixer import Gate, Mixer, MixerSizes
from compiler.mixers.window import BidirectionalWindow, CausalWindow, allowed
from compiler.ops.token_delay import token_delay

NEARLY_CLOSED = -5.0
"""z at first, without a match."""
MATCHED = 2.0
"""What a full match adds to z at first."""
NONE = 1e-38
"""Stands for a count of 0, so that its logarithm is a number."""


class PureMixer(nn.Module):
    """A causal mixer over all tokens, the token itself included, without any softmax."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(
        self, hidden: Tensor, raw_query: Tensor, raw_key: Tensor, query: Tensor, key: Tensor, value: Tensor,
        *masks: Tensor,
    ) -> Tensor:  # fmt: skip
        """[batch, heads, tokens, value_dim] from the inputs of a token-mixer site."""
        written = self.mixer.write(hidden, raw_key, value)
        return self.mixer.read(hidden, raw_query, written, positions_of(hidden))


class CausalHybrid(nn.Module):
    """A window and a mixer over what has left it. The mixer is made for `sizes.with_match`."""

    def __init__(self, window: CausalWindow, mixer: Mixer, sizes: MixerSizes) -> None:
        super().__init__()
        self.window, self.mixer = window, mixer
        self.share = Gate(sizes.hidden_width, torch.full((sizes.head_count,), NEARLY_CLOSED))
        self.slope = nn.Parameter(torch.full((sizes.head_count, 1), MATCHED))

    def forward(
        self, hidden: Tensor, raw_query: Tensor, raw_key: Tensor, query: Tensor, key: Tensor, value: Tensor,
        *masks: Tensor,
    ) -> Tensor:  # fmt: skip
        """[batch, heads, tokens, value_dim] from the inputs of a token-mixer site."""
        near, log_sum = self.window(query, key, value, masks)
        positions = positions_of(hidden)
        left = (positions + (1 - self.window.window - self.window.sinks)).unsqueeze(-1)  # tokens that have left
        written = self.mixer.write(hidden, raw_key, with_one(value))
        line, _ = token_delay(torch.cat(written, -1), None, None, self.window.window)
        if self.window.sinks:
            line = line * (left > 0).to(line.dtype)
        delayed = torch.split(line, [one.shape[-1] for one in written], -1)
        far = self.mixer.read(hidden, raw_query, delayed, positions)
        far, match = torch.split(far, [value.shape[-1], 1], -1)
        score = self.share(hidden) + left.to(hidden.dtype).clamp(min=NONE).log()  # [batch, tokens, heads]
        score = score.transpose(1, 2) + self.slope * match.squeeze(-1) - log_sum.to(score.dtype)
        share = score.sigmoid().unsqueeze(-1)
        mixed: Tensor = near + share * (far - near)
        return mixed


class BidirectionalHybrid(nn.Module):
    """A window, where there is one, and two mixers over what is before and behind it, made for `sizes.with_match`."""

    def __init__(self, window: BidirectionalWindow | None, mixers: Sequence[Mixer], sizes: MixerSizes) -> None:
        super().__init__()
        self.window = window
        self.forwards, self.backwards = mixers
        count = 2 * sizes.head_count
        self.share = Gate(sizes.hidden_width, torch.full((count,), NEARLY_CLOSED if window else 0.0))
        self.slope = nn.Parameter(torch.full((count, 1), MATCHED))

    def forward(
        self, hidden: Tensor, raw_query: Tensor, raw_key: Tensor, query: Tensor, key: Tensor, value: Tensor,
        *masks: Tensor,
    ) -> Tensor:  # fmt: skip
        """[batch, heads, tokens, value_dim] from the inputs of a token-mixer site."""
        kept = self._kept(hidden, masks)
        parts, scores = [], []
        if self.window is not None:
            near, log_sum = self.window(query, key, value, masks)
            parts, scores = [near], [log_sum.to(near.dtype)]
        reach = self.window.window if self.window is not None else 0
        shares, slopes = self.share(hidden).transpose(1, 2).chunk(2, 1), self.slope.chunk(2, 0)
        for mixer, back in ((self.forwards, False), (self.backwards, True)):
            # Without a window a token is part of what it reads forwards, and so not of what it reads backwards.
            delay = reach or int(back)
            far, count = self._read(mixer, hidden, raw_query, raw_key, with_one(value), kept, delay, back)
            far, match = torch.split(far, [value.shape[-1], 1], -1)
            parts.append(far)
            z = shares[back] + slopes[back] * match.squeeze(-1)  # [batch, heads, tokens]
            scores.append(z + count.clamp(min=NONE).log().transpose(1, 2))
        weights = torch.stack(scores, -1).softmax(-1)  # [batch, heads, tokens, parts]
        return (torch.stack(parts, -1) * weights.unsqueeze(-2)).sum(-1)

    def _read(
        self, mixer: Mixer, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: Tensor, delay: int,
        back: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What a mixer gives in one direction, and of how many tokens it is, [batch, tokens, 1]."""
        written = mixer.write(hidden, key, value)
        line = torch.cat([torch.cat(written, -1) * kept, kept.expand(hidden.shape[0], -1, -1)], -1)
        if back:
            hidden, query, line = hidden.flip(1), query.flip(2), line.flip(1)
        if delay:
            line, _ = token_delay(line, None, None, delay)
        *found, counted = torch.split(line, [*(one.shape[-1] for one in written), 1], -1)
        far, count = mixer.read(hidden, query, found, positions_of(hidden)), counted.cumsum(1)
        return (far.flip(2), count.flip(1)) if back else (far, count)

    def _kept(self, hidden: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """1 for tokens that mixers read, 0 for sinks and padding. [batch or 1, tokens, 1]"""
        sinks = self.window.sinks if self.window is not None else 0
        kept = (positions_of(hidden) >= sinks).to(hidden.dtype).unsqueeze(-1)
        for mask in masks:
            seen = allowed(mask).to(hidden.dtype).amax(-2)  # [..., tokens]: whether any token sees a key
            kept = kept * (seen.flatten(0, -2).unsqueeze(-1) if seen.dim() > 1 else seen.unsqueeze(-1))
        return kept


def with_one(value: Tensor) -> Tensor:
    """[batch, heads, tokens, value_dim] with one more number, which is 1. Joined as it lies, tokens first."""
    ones = value.new_ones(value.shape[0], value.shape[2], value.shape[1], 1)  # the same for all layers
    return torch.cat([value.transpose(1, 2), ones], -1).transpose(1, 2)


def positions_of(hidden: Tensor) -> Tensor:
    """0 to tokens - 1, int64 [1, tokens], in the form that `make-incremental` turns into positions behind the past."""
    return torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
