"""Mixers with a matrix a head as their state, which maps keys to values: regraft::linear_attention in its update rules.

Queries and keys are the layer's own before any rotary embedding, mapped head by head (at first by the identity) and
brought to length 1; values are the layer's own. A kind says how fast it forgets and how strongly it writes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from compiler.mixers.mixer import Gate, HeadMaps, Mixer, MixerOptions, MixerSizes, by_head, packed
from compiler.ops.linear_attention import linear_attention
from compiler.ops.rms_norm import rms_norm

SHORTEST_MEMORY, LONGEST_MEMORY = 128, 4096
"""Tokens over which heads forget by a factor of e at first, in a geometric series from head to head."""
NORM_EPSILON = 1e-6
WRITTEN = 0.1
"""What share of a key's old value a token replaces at first, by the delta rule."""


class AssociativeMixer(Mixer):
    """A state [key_dim, value_dim] for each of `state_heads`, the key heads (`heads=shared`) or one a query head.

    Subclasses give `decay` and, for delta rules, `strength`, or a `strength` that scales what is written.
    """

    update_rule: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ("heads",)

    def __init__(self, sizes: MixerSizes, options: MixerOptions) -> None:
        super().__init__(sizes, options)
        self.state_heads = sizes.head_count if options.heads == "own" else sizes.kv_head_count
        self.query_map = HeadMaps(sizes.head_count, sizes.key_dim)
        self.key_map = HeadMaps(self.state_heads, sizes.key_dim)
        self.output_map = HeadMaps(sizes.head_count, sizes.value_dim)
        self.register_buffer("unit", torch.full((sizes.key_dim,), sizes.key_dim**-0.5))

    @abstractmethod
    def decay(self, hidden: Tensor) -> Tensor:
        """Logarithm of what stays of the state, [batch, tokens, state_heads] or that for every channel of keys."""

    @abstractmethod
    def strength(self, hidden: Tensor) -> Tensor:
        """How strongly a token writes, [batch, tokens, state_heads]."""

    def write(self, hidden: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Keys of length 1, values, strengths where the rule takes them (otherwise values are scaled), decays."""
        key, value, strength = self.for_states(key), self.for_states(value), self.strength(hidden)
        if "delta" in self.update_rule:
            return packed(self.normal(self.key_map(key))), packed(value), strength, self.decay(hidden)
        scaled = value * strength.transpose(1, 2).unsqueeze(-1)
        return packed(self.normal(self.key_map(key))), packed(scaled), self.decay(hidden)

    def read(self, hidden: Tensor, query: Tensor, written: Sequence[Tensor], positions: Tensor) -> Tensor:
        """S_t^T q_t, mapped head by head."""
        key, value, *strength, decay = written
        output, _ = linear_attention(
            packed(self.normal(self.query_map(query))), key, value, None, decay, strength[0] if strength else None,
            self.sizes.head_count, self.state_heads, self.update_rule, 1.0,
        )  # fmt: skip
        mapped: Tensor = self.output_map(by_head(output, self.sizes.head_count))
        return mapped

    def normal(self, x: Tensor) -> Tensor:
        """Vectors of length 1."""
        scaled: Tensor = rms_norm(x, self.unit, NORM_EPSILON)
        return scaled

    def for_states(self, x: Tensor) -> Tensor:
        """[batch, kv_heads, tokens, dim] as [batch, state_heads, tokens, dim]."""
        repeats = self.state_heads // x.shape[1]
        return x if repeats == 1 else x.repeat_interleave(repeats, 1)


class DeltaRuleMixer(AssociativeMixer):
    """A token replaces a share sigmoid(U h + d) of what its key had, or of twice that with `negative_eigenvalues`: a
    state may then change sign along a key (Grazzi et al. 2024, arXiv:2411.12537). Subclasses give `decay`.
    """

    update_rule = "gated_delta"
    takes: ClassVar[tuple[str, ...]] = ("heads", "negative_eigenvalues")

    def __init__(self, sizes: MixerSizes, options: MixerOptions) -> None:
        super().__init__(sizes, options)
        self.range = 2.0 if options.negative_eigenvalues else 1.0
        self.strengths = strength_gate(sizes, torch.full((self.state_heads,), WRITTEN / self.range))

    def strength(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, state_heads]"""
        return self.range * torch.sigmoid(self.strengths(hidden))


def memories(heads: int) -> Tensor:
    """Tokens after which each head has forgotten by a factor of e, at first. [heads]"""
    return torch.logspace(math.log10(SHORTEST_MEMORY), math.log10(LONGEST_MEMORY), heads)


def softplus_inverse(y: Tensor) -> Tensor:
    """x with softplus(x) = y, for y above 0."""
    return y.expm1().log()


def strength_gate(sizes: MixerSizes, constant: Tensor) -> Gate:
    """A gate a state head with sigmoid(gate) = constant at first."""
    return Gate(sizes.hidden_width, torch.logit(constant))
