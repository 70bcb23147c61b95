"""What --budget says, and what it cannot mean."""

from __future__ import annotations

import pytest

from compiler.budget.limits import Limit, check_budget, read_limits
from compiler.errors import CompilerError


@pytest.mark.parametrize(
    ("text", "whole", "allowed"),
    [("size=0.35", 200.0, 70.0), ("size=20MB", 5e7, 2e7), ("flops=.5", 8.0, 4.0), ("latency=8ms", 1.0, 0.008)],
)
def test_a_share_is_of_the_whole_and_a_unit_is_not(text: str, whole: float, allowed: float) -> None:
    limit = Limit.parse(text)
    assert limit.of(whole) == pytest.approx(allowed)
    assert Limit.parse(str(limit)) == limit


def test_amounts_are_told_in_the_words_of_the_limit() -> None:
    assert Limit.parse("size=0.35").share(50.0, 200.0) == "0.25"
    assert Limit.parse("size=20MB").share(1.5e6, 200.0) == "1.5MB"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("weight=0.3", "'weight=0.3' is none of size=..., flops=..., latency=..."),
        ("size", "'size' is none of"),
        ("size=1.5", "size=1.5: a share is above 0 and at most 1"),
        ("size=0", "size=0: a share is above 0 and at most 1"),
        ("latency=0ms", "latency=0ms: an amount is above 0"),
        ("size=\u0663MB", "is no share from 0 to 1 and no number of kB or MB or GB"),
        ("size=20Mb", "'20Mb' is no share from 0 to 1 and no number of kB or MB or GB"),
        ("flops=3MB", "'3MB' is no share from 0 to 1"),
    ],
)
def test_what_it_cannot_mean_is_an_error_with_a_hint(text: str, said: str) -> None:
    with pytest.raises(CompilerError) as caught:
        check_budget([text])
    assert said in caught.value.problem
    assert caught.value.hint


def test_a_quantity_is_limited_once() -> None:
    assert [str(limit) for limit in read_limits(["size=0.3", "flops=0.5"])] == ["size=0.3", "flops=0.5"]
    with pytest.raises(ValueError, match="size is given twice"):
        read_limits(["size=0.3", "size=20MB"])
