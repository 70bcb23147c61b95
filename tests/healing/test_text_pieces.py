"""Spans that are told twice, and batches in two."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.healing.text_pieces import halved, with_repeated_span


@given(st.integers(1, 200), st.integers(0, 1000))
def test_a_span_stands_twice_and_the_rest_as_it_was(count: int, seed: int) -> None:
    tokens = torch.arange(1000, 1000 + count)[None].repeat(2, 1)
    found = with_repeated_span(tokens, seed)
    assert found.shape == tokens.shape
    assert torch.equal(found[:, 0], tokens[:, 0])
    assert torch.equal(found, with_repeated_span(tokens, seed))
    for row in found:
        seen = row.tolist()
        repeated = [token for token in dict.fromkeys(seen) if seen.count(token) == 2]
        if count < 10:
            assert seen == tokens[0].tolist()
            continue
        assert max(map(seen.count, seen)) == 2
        first, second = ([place for place, token in enumerate(seen) if token in repeated][part] for part in (0, -1))
        span = [token for token in seen[first:] if token in repeated][: len(repeated)]
        assert seen[first : first + len(span)] == span
        assert seen[second - len(span) + 1 : second + 1] == span
        assert all(token == 1000 + place for place, token in enumerate(seen) if token not in repeated)
        assert len(span) >= max(4, (count - 1) // 16)


def test_batches_are_cut_by_rows_and_then_by_tokens() -> None:
    ids, mask = torch.arange(256).view(2, 128), torch.ones(2, 128)
    rows = halved([(ids, mask)], by_tokens=True)
    assert [one[0].tolist() for one in rows] == [[ids[0].tolist()], [ids[1].tolist()]]
    assert [one[1].shape for one in rows] == [(1, 128)] * 2
    tokens = halved(rows[:1], by_tokens=True)
    assert [one[0].shape for one in tokens] == [(1, 64)] * 2
    assert halved(tokens, by_tokens=True) == tokens
    assert halved(rows[:1], by_tokens=False) == rows[:1]


def test_batches_whose_inputs_have_no_common_rows_stay() -> None:
    batch = (torch.ones(4, 2), torch.ones(3))
    assert halved([batch], by_tokens=False) == [batch]
