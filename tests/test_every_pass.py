"""What holds for every pass that ships: its name, file, docstring, options and test file.

Rewrites are also run on small models of many kinds: each keeps the numbers and changes nothing the second time.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
from pathlib import Path

import pytest
import zoo
from rewrite_checks import rewritten

from compiler.options import options_of
from compiler.registry import Registry
from compiler.rewriting import Graft, Pass, Rewrite

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("Before:", "After:", "Shapes:", "Exact|Lossy:", "Refuses:", "Source:")
MODELS = ("llama", "t5", "resnet")
"""Between them causal and not, gated and plain, SDPA and eager attention, relative bias, convolutions, four norms."""
TOLERANCE = 1e-5
"""Of the largest output, in float32."""


@functools.cache
def shipped() -> dict[str, type[Pass]]:
    """The passes of this repository by name."""
    return Registry(entry_points=False).passes()


def module_file(cls: type[Pass]) -> Path:
    """The file that defines the pass, relative to the repository."""
    return Path(inspect.getfile(cls)).resolve().relative_to(ROOT)


REWRITES = [name for name, cls in shipped().items() if issubclass(cls, Rewrite)]


def test_the_passes_that_issue_two_asks_for_are_there():
    asked = {"canonicalize", "fold-constants", "eliminate-dead-code", "eliminate-common-subexpressions", "quantize"}
    asked |= {"fuse-conv-batch-norm", "fuse-rms-norm", "fuse-attention", "fuse-gelu"}
    assert asked <= set(shipped())


@pytest.mark.parametrize("name", shipped())
class TestForm:
    def test_name_file_and_class_are_one(self, name: str):
        cls = shipped()[name]
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert cls.__name__ == "".join(part.capitalize() for part in name.split("-"))
        assert module_file(cls).stem == name.replace("-", "_")

    def test_it_has_a_test_file_that_mirrors_its_own(self, name: str):
        source = module_file(shipped()[name])
        mirror = Path("tests") / source.parent / f"test_{source.name}"
        assert (ROOT / mirror).is_file(), f"{mirror} is missing"

    def test_the_docstring_has_every_section_in_order(self, name: str):
        text = sys.modules[shipped()[name].__module__].__doc__ or ""
        found = [re.search(rf"(?m)(^|\s)({section})", text) for section in SECTIONS]
        missing = [section for section, match in zip(SECTIONS, found, strict=True) if match is None]
        assert not missing
        starts = [match.start() for match in found if match is not None]
        assert starts == sorted(starts)
        first = text.strip().splitlines()[0]
        assert 10 < len(first) <= 120

    def test_the_docstring_says_what_kind_of_pass_it_is(self, name: str):
        cls = shipped()[name]
        text = sys.modules[cls.__module__].__doc__ or ""
        assert ("Lossy:" in text) == issubclass(cls, Graft)

    def test_it_is_a_frozen_value_with_documented_options(self, name: str):
        cls = shipped()[name]
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen
        undocumented = [option.name for option in options_of(cls) if not option.help]
        assert not undocumented
        assert cls() == cls(), "a pass runs without options"

    def test_members_of_the_fuse_family_are_named_for_it(self, name: str):
        assert (shipped()[name].family == "fuse") == name.startswith("fuse-")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_is_exact_and_idempotent(name: str, model: str):
    rewrite = shipped()[name]()
    assert isinstance(rewrite, Rewrite)
    program = zoo.captured(model) if name == "canonicalize" else zoo.canonical(model)
    rewritten(rewrite, program, tolerance=TOLERANCE)


@pytest.mark.slow
def test_all_rewrites_in_a_row_are_exact():
    program = zoo.canonical("gemma2")
    pipelines = Registry(entry_points=False).pipelines()
    for name in [*pipelines["simplify"].split(","), *pipelines["fuse"].split(",")]:
        rewrite = shipped()[name]()
        assert isinstance(rewrite, Rewrite)
        program, _ = rewritten(rewrite, program, tolerance=TOLERANCE)
