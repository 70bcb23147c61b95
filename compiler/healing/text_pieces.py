"""Training batches cut to what memory allows, and repeated spans among the text so that recall heals too.

    text          t0 t1 t2 ... t511
    with a span   t0 | a b c d | t5 ... t300 | a b c d | t305 ...     a b c d drawn from the window, shuffled or not

Plain text hardly asks for what stood long ago: a quarter of what is trained on does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

REPEATED_EVERY = 8
SHORTEST_SPAN = 4
LEAST_TOKENS = 64

Batch = tuple[Tensor, ...]


def halved(batches: Sequence[Batch], *, by_tokens: bool) -> list[Batch]:
    """Each batch in two: by rows, or, where it has one row and windows may be cut, by tokens. Otherwise the same."""
    found: list[Batch] = []
    for batch in batches:
        rows = {len(tensor) for tensor in batch if tensor.dim()}
        if len(rows) == 1 and (count := rows.pop()) > 1:
            middle = count // 2
            found += [tuple(one[:middle] for one in batch), tuple(one[middle:] for one in batch)]
        elif by_tokens and batch[0].shape[1] >= 2 * LEAST_TOKENS:
            middle = batch[0].shape[1] // 2
            found += [tuple(one[:, :middle] for one in batch), tuple(one[:, middle:] for one in batch)]
        else:
            found.append(batch)
    return found


def with_repeated_span(tokens: Tensor, seed: int) -> Tensor:
    """Token ids [batch, tokens] with a span of each row told twice: a sixteenth to nearly half of the row long."""
    generator = torch.Generator().manual_seed(seed)
    count = tokens.shape[1] - 1  # the first token may be one that begins every text
    longest = (count - 1) // 2
    if longest < SHORTEST_SPAN:
        return tokens
    found = tokens.clone()
    for row in found:
        shortest = max(SHORTEST_SPAN, count // 16)
        length = _draw(min(shortest, longest), longest, generator)
        first = 1 + _draw(0, count - 2 * length, generator)
        second = _draw(first + length, 1 + count - length, generator)
        span = row[first : first + length].clone()
        if _draw(0, 1, generator):
            span = span[torch.randperm(length, generator=generator)]
        row[first : first + length] = span
        row[second : second + length] = span
    return found


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
