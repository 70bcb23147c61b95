"""Numbers as people read them: never better than they are."""

from __future__ import annotations

import pytest

from compiler.report import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (0.99999999, "0.99999+"), (0.999994, "0.99999"), (0.9975, "0.99750"), (-1.0, "-1.00000")],
)
def test_a_cosine_is_one_only_when_it_is(value: float, text: str) -> None:
    assert formats.cosine(value) == text


@pytest.mark.parametrize(("value", "text"), [(1.0, "100 %"), (0.9999, "99.9 %"), (0.9375, "93.8 %"), (0.0, "0.0 %")])
def test_a_share_is_whole_only_when_it_is(value: float, text: str) -> None:
    assert formats.share(value) == text


def test_sizes_times_and_work() -> None:
    assert [formats.megabytes(size) for size in (22_700_000, 1_234, None)] == ["22.7 MB", "1.2 kB", "-"]
    assert [formats.milliseconds(s) for s in (0.00512, 0.0512, 0.512)] == ["5.12 ms", "51.2 ms", "512 ms"]
    assert [formats.operations(f) for f in (1.36e9, 2e5)] == ["1.36 GFLOP", "0.20 MFLOP"]
    assert [formats.duration(s) for s in (4.25, 125.2)] == ["4.2 s", "125 s"]


def test_what_a_pass_did() -> None:
    assert formats.states({"make": "graft", "states": {"refused": 2, "grafted": 70}}) == "70 grafted, 2 refused"
    assert formats.states({"make": "rewrite", "states": {}, "changed_count": 1}) == "1 change"
    assert formats.states({"make": "graft", "states": {}}) == "nothing to do"
