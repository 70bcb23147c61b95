"""Mixer: what a token leaves behind and what later tokens read of it. A new one is a subclass in one file.

A hybrid hands a mixer the tokens that have left its window: what `write` gives for them is delayed, `read` is of now.
So `write` sees each token alone, and `read` mixes what it is given in order, with the dialect's recurrent operators.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from compiler.sites import Site


@dataclass(frozen=True)
class MixerSizes:
    """The sizes of the attention that a mixer stands in for."""

    hidden_width: int
    head_count: int
    kv_head_count: int
    key_dim: int
    value_dim: int

    @classmethod
    def of(cls, site: Site) -> MixerSizes:
        """Those of a token-mixer site."""
        names = ("hidden_width", "head_count", "kv_head_count", "head_dim", "value_dim")
        return cls(*(int(site.bindings[name]) for name in names))

    @property
    def with_match(self) -> MixerSizes:
        """With one more number in every value."""
        return replace(self, value_dim=self.value_dim + 1)


@dataclass(frozen=True)
class MixerOptions:
    """What a user may choose of a mixer. None: the mixer's own default; a mixer `takes` some of them."""

    heads: Literal["shared", "own"] | None = None
    negative_eigenvalues: bool | None = None
    steps: int | None = None
    state_size: int | None = None
    kernel_size: int | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """The names of those that were chosen."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is not None)


class Mixer(nn.Module, ABC):
    """Mixes tokens forwards, by a recurrence. Parameters start from the layer's own queries, keys and values.

    `takes` names the options of `MixerOptions` that it heeds.
    """

    name: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, sizes: MixerSizes, options: MixerOptions) -> None:
        super().__init__()
        self.sizes = sizes

    @abstractmethod
    def write(self, hidden: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """What each token leaves behind, some [batch, tokens, features]. All zeros must leave no trace in `read`.

        hidden [batch, tokens, hidden_width]; key, value [batch, kv_heads, tokens, dim], keys not rotated.
        """

    @abstractmethod
    def read(self, hidden: Tensor, query: Tensor, written: Sequence[Tensor], positions: Tensor) -> Tensor:
        """What each token sees of `written` up to its own place, [batch, heads, tokens, value_dim].

        query [batch, heads, tokens, key_dim], not rotated; positions int64 [batch or 1, tokens].
        """


class HeadMaps(nn.Module):
    """A matrix a head, which starts as the identity: [batch, heads, tokens, dim] to the same."""

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim).repeat(heads, 1, 1))  # [heads, dim, dim]

    def forward(self, x: Tensor) -> Tensor:
        """x_head @ weight_head."""
        return x @ self.weight


class Gate(nn.Module):
    """A linear function of the hidden state that starts as a constant. With a `rank`, through so many numbers."""

    def __init__(self, width: int, constant: Tensor, rank: int | None = None) -> None:
        super().__init__()
        self.down = None if rank is None else nn.Linear(width, rank, bias=False)
        self.weight = nn.Parameter(torch.zeros(len(constant), width if rank is None else rank))
        self.bias = nn.Parameter(constant.clone())

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, tokens, width] to [batch, tokens, features]."""
        x = hidden if self.down is None else self.down(hidden)
        return nn.functional.linear(x, self.weight, self.bias)


def packed(x: Tensor) -> Tensor:
    """[batch, heads, tokens, dim] as [batch, tokens, heads * dim]."""
    return x.transpose(1, 2).flatten(2)


def by_head(x: Tensor, heads: int) -> Tensor:
    """[batch, tokens, heads * dim] as [batch, heads, tokens, dim]."""
    return torch.unflatten(x, 2, (heads, -1)).transpose(1, 2)
