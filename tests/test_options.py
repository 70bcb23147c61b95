"""Options: every type read from text and from TOML values, and every wrong one answered with the nearest right one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from compiler.errors import CompilerError
from compiler.options import build, options_of


@dataclass(frozen=True)
class Sample:
    name = "sample"
    bits: Annotated[Literal[8, 4], "bits of a weight"] = 8
    ratio: float = 0.5
    fast: bool = False
    sites: tuple[str, ...] = ()
    group: int | None = None
    label: str = "x"


@dataclass(frozen=True)
class Needy:
    name = "needy"
    size: int


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Sample()),
        ({"bits": "4"}, Sample(bits=4)),
        ({"bits": 4}, Sample(bits=4)),
        ({"ratio": "0.25"}, Sample(ratio=0.25)),
        ({"ratio": 1}, Sample(ratio=1.0)),
        ({"fast": "yes"}, Sample(fast=True)),
        ({"fast": True}, Sample(fast=True)),
        ({"sites": "a.*+b"}, Sample(sites=("a.*", "b"))),
        ({"sites": ["a", "b"]}, Sample(sites=("a", "b"))),
        ({"group": "none"}, Sample(group=None)),
        ({"group": "32"}, Sample(group=32)),
    ],
)
def test_values_are_read(given: dict[str, object], expected: Sample) -> None:
    assert build(Sample, given) == expected


@pytest.mark.parametrize(
    ("given", "problem", "hint"),
    [
        ({"bit": 4}, "there is no option 'bit'", "Did you mean 'bits'?"),
        ({"zzz": 4}, "there is no option 'zzz'", "Its options: bits, ratio, fast, sites, group, label."),
        ({"bits": 5}, "bits=5 is none of 8, 4", "One of: 8, 4."),
        ({"ratio": "half"}, "ratio=half is not a number", "Write ratio=0.5 or the like."),
        ({"ratio": "nan"}, "ratio=nan is not a number", "Write ratio=0.5 or the like."),
        ({"fast": "maybe"}, "fast=maybe is not true or false", "Write fast=true or the like."),
        ({"group": "3.5"}, "group=3.5 is not a whole number", "Write group=4 or the like."),
        ({"group": 3.5}, "group=3.5 is not a whole number", "Write group=4 or the like."),
        ({"group": True}, "group=True is not a whole number", "Write group=4 or the like."),
    ],
)
def test_wrong_values_are_answered(given: dict[str, object], problem: str, hint: str) -> None:
    with pytest.raises(CompilerError) as caught:
        build(Sample, given)
    assert (caught.value.problem, caught.value.hint) == (problem, hint)


def test_a_missing_option_is_named() -> None:
    with pytest.raises(CompilerError, match="option 'size' is needed"):
        build(Needy, {})


def test_options_are_described() -> None:
    described = {option.name: (option.type_name, option.default, option.help) for option in options_of(Sample)}
    assert described["bits"] == ("8 | 4", 8, "bits of a weight")
    assert described["sites"] == ("text, joined by +", (), "")
    assert described["group"] == ("a whole number or none", None, "")
