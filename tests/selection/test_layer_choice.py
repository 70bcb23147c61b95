"""`layers=` names sites by number, glob, step and exception, and says what it cannot mean."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch import fx

from compiler.selection.layer_choice import LayerChoice, layer_numbers
from compiler.sites import Site


def sites(*names: str) -> list[Site]:
    graph = fx.Graph()
    outputs = [graph.placeholder(f"site_{index}") for index in range(len(names))]
    return [Site("attention", name, (), (), output, {}) for name, output in zip(names, outputs, strict=True)]


DECODER = sites(*(f"model.layers.{index}.self_attn" for index in range(12)))


def numbers(text: str, found: Sequence[Site] = DECODER) -> list[int | None]:
    chosen = LayerChoice.parse(text).candidates(found)
    return [number for site, number in zip(found, layer_numbers(found), strict=True) if site in chosen]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", list(range(12))),
        ("3+5+7", [3, 5, 7]),
        ("7+3", [3, 7]),
        ("every-4th", [3, 7, 11]),
        ("every-1st", list(range(12))),
        ("not-every-4th", [0, 1, 2, 4, 5, 6, 8, 9, 10]),
        ("all+not-0+not-11", list(range(1, 11))),
        ("*.1?.*", [10, 11]),
        ("*.[02].self_attn+5", [0, 2, 5]),
        ("model.layers.4.self_attn", [4]),
        ("auto-0.75+not-0", list(range(1, 12))),
    ],
)
def test_terms_name_sites(text: str, expected: list[int]) -> None:
    assert numbers(text) == expected


def test_the_share_is_that_of_auto() -> None:
    assert LayerChoice.parse("auto-0.75+not-0").share == 0.75
    assert LayerChoice.parse("all").share is None


def test_steps_count_the_layers_that_have_such_a_site() -> None:
    hybrid = sites(*(f"layers.{index}.attn" for index in (3, 7, 11, 15)))
    assert numbers("every-2nd", hybrid) == [7, 15]
    assert numbers("7", hybrid) == [7]


def test_all_sites_of_a_layer_go_together() -> None:
    found = sites("h.0.attn.q", "h.0.attn.k", "h.1.attn.q", "h.1.attn.k")
    assert numbers("1", found) == [1, 1]
    assert numbers("every-2nd", found) == [1, 1]


def test_a_head_beside_numbered_layers_is_of_none_of_them() -> None:
    found = sites("layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down", "head")
    assert numbers("1", found) == [1, 1]
    assert numbers("every-2nd", found) == [1, 1]
    assert numbers("not-0", found) == [1, 1, None]
    assert numbers("head", found) == [None]


def test_sites_without_numbers_are_counted() -> None:
    assert numbers("1", sites("first", "second", "third")) == [1]


@pytest.mark.parametrize(
    "text",
    ["", "+", "auto-", "auto-0", "auto-1.5", "auto-nan", "auto-0.5+auto-0.5", "3 5", "every-0th", "every-fourth"],
)
def test_what_it_cannot_mean_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="layers="):
        LayerChoice.parse(text)


@pytest.mark.parametrize("text", ["12", "*.attention", "not-40", "every-13th"])
def test_a_term_that_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"names none of 12 sites, of layers 0 to 11, such as model\.layers\.0"):
        LayerChoice.parse(text).candidates(DECODER)
