"""Targets are parsed from text, and near misses get the nearest name."""

import pytest

from compiler.errors import CompilerError
from compiler.target import TARGETS, Target


@pytest.mark.parametrize("text", ["cpu", "cpu:x86-64-v4", "linux-aarch64", "wasm", "cuda:sm_90", "rocm:gfx942"])
def test_text_round_trips(text: str) -> None:
    assert str(Target.parse(text)) == text


def test_every_target_is_described() -> None:
    assert all(Target(name).description for name in TARGETS)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("cup", "Did you mean 'cpu'?"),
        ("cuda:sm_09", "Did you mean 'sm_90'?"),
        ("wasm:x", "Architectures of wasm: none."),
    ],
)
def test_near_misses_are_answered(text: str, hint: str) -> None:
    with pytest.raises(CompilerError) as caught:
        Target.parse(text)
    assert caught.value.hint == hint
