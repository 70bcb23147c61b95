"""--heal and the table of a recipe: what they say, and what is wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.errors import CompilerError
from compiler.healing.options import HealingOptions, parse_healing
from compiler.recipe import Recipe


def test_minutes_alone_or_with_options() -> None:
    assert parse_healing("15") == HealingOptions(15.0)
    assert parse_healing("1.5:optimizer=muon:lora=0") == HealingOptions(1.5, "muon", 0)
    assert parse_healing("minutes=2:memory=512") == HealingOptions(2.0, memory=512)
    assert parse_healing("1:guided=true").guided
    assert parse_healing("1:rate=2e-3").rate == 0.002
    assert HealingOptions(1.5).seconds == 90


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "minutes= is not a number"),
        ("soon", "minutes=soon is not a number"),
        ("0", "0 minutes are not between 0 and a week"),
        ("-3", "-3 minutes are not between"),
        ("nan", "minutes=nan is not a number"),
        ("inf", "inf minutes are not between"),
        ("15:muon", "'muon' is not key=value"),
        ("15:lora=1:lora=2", "'lora' is given twice"),
        ("15:lora=-1", "a LoRA rank of -1 is not from 0 to 256"),
        ("15:optimiser=muon", "there is no option 'optimiser'"),
        ("15:optimizer=sgd", "optimizer=sgd is none of adamw, muon"),
        ("15:rate=0", "a learning rate of 0 is not above 0"),
        ("15:rate=nan", "rate=nan is not a number"),
        ("15:memory=1", "at least 64 megabytes"),
        ("lora=4", "option 'minutes' is needed"),
    ],
)
def test_what_is_wrong_is_said(text: str, problem: str) -> None:
    with pytest.raises(CompilerError, match="reading --heal") as caught:
        parse_healing(text)
    assert problem in str(caught.value)
    assert caught.value.hint


def test_recipes_hold_it(tmp_path: Path) -> None:
    recipe = Recipe("model", (), heal=HealingOptions(15, "muon", 8))
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.text(), encoding="utf-8")
    assert Recipe.read(path) == recipe
    path.write_text('model = "m"\nheal = 2.5\n', encoding="utf-8")
    assert Recipe.read(path).heal == HealingOptions(2.5)
    path.write_text('model = "m"\n[heal]\nminutes = 1\nrank = 3\n', encoding="utf-8")
    with pytest.raises(CompilerError, match=r"recipe\.toml: there is no option 'rank'"):
        Recipe.read(path)
