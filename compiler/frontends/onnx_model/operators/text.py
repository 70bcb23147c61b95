"""TfIdfVectorizer over tokens that are integers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator


@operator("TfIdfVectorizer", since=9)
def tf_idf_vectorizer(
    x: Tensor,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: list[int],
    ngram_indexes: list[int],
    pool_int64s: list[int] | None = None,
    weights: list[float] | None = None,
    node: NodeContext,
) -> Tensor:
    """How often each n-gram of the pool occurs in each row, weighted as `mode` says.

    `ngram_counts` says where in the pool the n-grams of each length begin, and `ngram_indexes` where each one's count
    goes. Tokens of an n-gram stand next to each other or, up to `max_skip_count`, evenly that far apart.
    """
    if pool_int64s is None:
        raise node.refuse("it counts strings", "Tokens that are integers are read.")
    rows = x if x.dim() == 2 else x.unsqueeze(0)
    width = max(ngram_indexes) + 1
    counts = torch.zeros(rows.shape[0], width)
    taken = 0
    for place, (begin, end) in enumerate(zip(ngram_counts, [*ngram_counts[1:], len(pool_int64s)], strict=True)):
        length = place + 1
        grams = [pool_int64s[start : start + length] for start in range(begin, end, length)]
        columns = ngram_indexes[taken : taken + len(grams)]
        taken += len(grams)
        if not grams or not min_gram_length <= length <= max_gram_length:
            continue
        found = _occurrences(rows, grams, range(1, 2 if length == 1 else max_skip_count + 2))
        placement = [[float(column == one) for one in range(width)] for column in columns]
        counts = counts + torch.matmul(found, torch.tensor(placement))
    scaled = _weighted(counts, mode, weights, ngram_indexes)
    return scaled if x.dim() == 2 else scaled.squeeze(0)


def _occurrences(rows: Tensor, grams: Sequence[Sequence[int]], distances: Sequence[int]) -> Tensor:
    """[rows, grams]: how often each n-gram occurs, its tokens at each of the distances from each other."""
    pool = torch.tensor(grams, dtype=rows.dtype)  # [grams, length]
    total = torch.zeros(rows.shape[0], len(grams))
    length, width = len(grams[0]), rows.shape[1]
    for distance in distances:
        reach = (length - 1) * distance
        if isinstance(width, int) and width <= reach:
            break
        tokens = torch.stack([rows[:, i * distance : width - reach + i * distance] for i in range(length)], -1)
        same = (tokens.unsqueeze(1) == pool.unsqueeze(1)).to(torch.int32).sum(-1) == length  # [rows, grams, places]
        total = total + same.to(torch.float32).sum(-1)
    return total


def _weighted(counts: Tensor, mode: str, weights: list[float] | None, indexes: Sequence[int]) -> Tensor:
    if mode == "TF":
        return counts
    present = counts if mode == "TFIDF" else (counts > 0).to(torch.float32)
    if weights is None:
        return present
    by_column = dict(zip(indexes, weights, strict=True))
    return present * torch.tensor([by_column.get(column, 1.0) for column in range(max(indexes) + 1)])
