"""The pass grammar and TOML recipes say the same thing, and broken ones say what is broken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.errors import CompilerError
from compiler.program import Program
from compiler.recipe import PassSpec, Recipe, build_passes, parse_passes, spec_of
from compiler.rewriting import PassContext, PassResult, Rewrite


@dataclass(frozen=True)
class First(Rewrite):
    """Does nothing."""

    name = "first"
    depth: int = 1
    wide: bool = False

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        return PassResult()


KNOWN = {"first": First}
PIPELINES = {"both": "first:depth=2,first"}


def test_passes_are_parsed() -> None:
    specs = parse_passes("fuse,linear-attention:kind=gated-delta:layers=auto-0.5, quantize:bits=4:group=32")
    assert specs == (
        PassSpec("fuse"),
        PassSpec("linear-attention", {"kind": "gated-delta", "layers": "auto-0.5"}),
        PassSpec("quantize", {"bits": "4", "group": "32"}),
    )
    assert parse_passes("") == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("fuse,,x", "a pass name is missing"),
        ("quantize:bits", "'bits' is not key=value"),
        ("quantize:=4", "'=4' is not key=value"),
        ("quantize:bits=4:bits=8", "'bits' is given twice"),
    ],
)
def test_broken_pass_text_is_answered(text: str, problem: str) -> None:
    with pytest.raises(CompilerError) as caught:
        parse_passes(text)
    assert caught.value.problem == problem


def test_pipelines_stand_for_their_passes() -> None:
    assert build_passes(parse_passes("both,first:wide=true"), KNOWN, PIPELINES) == [First(2), First(), First(1, True)]


def test_an_unknown_pass_gets_the_nearest_name() -> None:
    with pytest.raises(CompilerError) as caught:
        build_passes(parse_passes("frist"), KNOWN, PIPELINES)
    assert caught.value.hint == "Did you mean 'first'?"


def test_a_pipeline_that_names_itself_is_refused() -> None:
    with pytest.raises(CompilerError, match="there is no pass 'loop'"):
        build_passes(parse_passes("loop"), KNOWN, {"loop": "first,loop"})


@given(depth=st.integers(-5, 99), wide=st.booleans(), seed=st.integers(0, 2**31), drop=st.none() | st.floats(0, 1))
def test_a_recipe_survives_its_own_text(
    tmp_path_factory: pytest.TempPathFactory, depth: int, wide: bool, seed: int, drop: float | None
) -> None:
    recipe = Recipe("some/model", (spec_of(First(depth, wide)),), seed=seed, max_drop=drop)
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe.text())
    again = Recipe.read(path)
    assert again == recipe
    assert build_passes(again.passes or (), KNOWN, {}) == [First(depth, wide)]
    assert build_passes(parse_passes(str(spec_of(First(depth, wide)))), KNOWN, {}) == [First(depth, wide)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("modle = 'x'", "there is no key 'modle'"),
        ("seed = 'x'", "seed = 'x' has the wrong type"),
        ("seed = true", "seed = True has the wrong type"),
        ("allow_simulated = 1", "allow_simulated = 1 has the wrong type"),
        ("passes = [{bits = 4}]", "{'bits': 4} is no pass"),
        ("passes = [[", "it is not a readable TOML file"),
    ],
)
def test_broken_recipes_are_answered(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(CompilerError) as caught:
        Recipe.read(path)
    assert caught.value.problem.startswith(problem)


@pytest.mark.parametrize("allowed", [True, False])
def test_whether_formats_may_be_simulated_is_kept(tmp_path: Path, allowed: bool) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(Recipe("some/model", (), allow_simulated=allowed).text(), encoding="utf-8")
    assert Recipe.read(path).allow_simulated is allowed


def test_a_missing_recipe_is_answered(tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match="there is no such file"):
        Recipe.read(tmp_path / "none.toml")
