"""A budget on a small classifier: what is chosen and why, what it comes to, and that a plugin's graft joins in."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from budgeted_models import WIDTH, build
from rewrite_checks import captured, context_of
from torch import nn

from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.budget.mix import BudgetedMix
from compiler.budget.passes import with_budget
from compiler.budget.places import Choice, find_places
from compiler.budget.record import MixRecord
from compiler.budget.whole_model import WholeModel
from compiler.errors import CompilerError
from compiler.evidence.cost import float32_bytes
from compiler.grafting import apply_graft
from compiler.passes.linear.low_rank import LowRank
from compiler.passes.quantize import Quantize
from compiler.program import Program
from compiler.recipe import parse_passes
from compiler.registry import Registry
from compiler.rewriting import Graft, PassContext, PassResult

PLUGIN = '''
"""linear -> its bias alone; for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from compiler.hookspecs import hookimpl
from compiler.rewriting import Graft, Replacement


class Thin(nn.Module):
    """The bias, whatever comes in."""

    def __init__(self, rows: int, bias) -> None:
        super().__init__()
        self.rows, self.bias = rows, nn.Parameter(bias.detach().clone())

    def forward(self, x):
        return x[..., :1] * 0.0 + self.bias


@dataclass(frozen=True)
class OnlyBias(Graft):
    name: ClassVar[str] = "only-bias"
    site_kinds: ClassVar[tuple[str, ...]] = ("linear",)

    def propose(self, site, program, context):
        bias = program.weight(site.bindings["bias"])
        return Replacement(Thin(len(bias), bias), "only the bias is left")


@hookimpl
def register_passes():
    return [OnlyBias]
'''


@dataclasses.dataclass(frozen=True)
class FewBits(Quantize):
    """Offers little, so that little is measured."""

    @classmethod
    def candidates(cls, kind: str) -> Iterable[Graft]:
        """Weights in 8, 4 and 2 bits."""
        return (cls(activations="none"), cls(bits=4), cls(bits=2)) if kind == "linear" else ()


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    """No costs that another run kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@functools.cache
def program() -> Program:
    """The classifier, which no test changes."""
    module, inputs = build()
    found = captured(module, **inputs)
    found.role = "classifier"
    return found


def context(*grafts: type[Graft]) -> PassContext:
    """Calibrated on random rows, lowered with ONNX Runtime."""
    plain = context_of(program())
    rows = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(2))
    data = dataclasses.replace(plain.data, calibration=((rows,),), scoring=((rows.flip(0),),))
    return dataclasses.replace(
        plain, data=data, backend=OnnxRuntime(), grafts={one.name: one for one in grafts or (FewBits,)}
    )


@functools.cache
def mixed(limit: str, *grafts: type[Graft]) -> tuple[Program, PassResult, MixRecord]:
    """The classifier within a limit, and why so."""
    surroundings = context(*grafts)
    chosen, record = BudgetedMix(limits=(limit,)).planned(program(), surroundings)
    assert record is not None
    after, result = apply_graft(chosen, program(), (), surroundings)
    return after, result, record


def test_the_model_fits_and_what_counts_keeps_most_bits() -> None:
    after, result, record = mixed("size=0.3")
    (size,) = record.limits
    assert size.whole == float32_bytes(program())
    assert size.measured <= size.allowed == pytest.approx(0.3 * size.whole)
    assert size.expected == pytest.approx(size.measured, rel=0.05)
    assert set(result.changed) == {one.site for one in record.places if one.choice}
    by_site = {one.site: one for one in record.places}
    assert by_site["loud.up"].bytes >= by_site["quiet.up"].bytes
    assert by_site["loud.down"].bytes >= by_site["quiet.down"].bytes
    assert record.expected == pytest.approx(sum(one.cost for one in record.places))
    expected, found = program().run(build()[1]["x"])[0], after.run(build()[1]["x"])[0]
    assert (found - expected).norm() < 0.2 * expected.norm()


def test_less_room_costs_more() -> None:
    points = mixed("size=0.3")[2].frontier
    assert len(points) == 12
    assert [one.amount for one in points] == sorted(one.amount for one in points)
    assert all(left.cost >= right.cost - 1e-12 for left, right in itertools.pairwise(points))


def test_a_second_search_measures_nothing_again() -> None:
    record = mixed("size=0.3")[2]
    again = BudgetedMix(limits=("size=0.3",)).planned(program(), context())[1]
    assert again is not None
    assert again.texts == record.texts
    assert again.reused == again.candidate_count == record.candidate_count > 0


def test_the_mix_of_a_recipe_is_put_in_as_it_is() -> None:
    after, _, record = mixed("size=0.3")
    stated = BudgetedMix(limits=("size=0.3",), mix=record.texts)
    chosen, said = stated.planned(program(), context())
    again, _ = apply_graft(chosen, program(), (), context())
    assert said is not None
    assert said.texts == record.texts
    for name, weight in after.weights().items():
        assert torch.equal(weight, again.weights()[name]), name
    with pytest.raises(CompilerError, match="the model has no site 'elsewhere'"):
        BudgetedMix(limits=("size=0.3",), mix=("elsewhere: quantize",)).planned(program(), context())


def test_what_cannot_be_reached_names_the_smallest_that_can() -> None:
    with pytest.raises(CompilerError) as caught:
        BudgetedMix(limits=("size=0.01",)).planned(program(), context())
    assert "no choice of stand-ins reaches size=0.01: the smallest is size=0." in caught.value.problem
    assert "\n" not in caught.value.problem


def saving_only(part: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a mix that is lowered save only so much of what it really does."""
    true_uses = WholeModel.of_mix

    def uses(whole: WholeModel, made: Any, quantities: Sequence[str]) -> list[float]:
        found = zip(quantities, true_uses(whole, made, quantities), strict=True)
        return [whole.unchanged(one) - part * (whole.unchanged(one) - use) for one, use in found]

    monkeypatch.setattr(WholeModel, "of_mix", uses)


def tried_mixes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What is lowered on trial from now on, as it is tried: the note of each stand-in."""
    found: list[tuple[str, ...]] = []
    true_uses = WholeModel.of_mix

    def uses(whole: WholeModel, made: Any, quantities: Sequence[str]) -> list[float]:
        found.append(tuple(f"{key}: {getattr(one, 'note', '')}" for key, one in made.items()))
        return true_uses(whole, made, quantities)

    monkeypatch.setattr(WholeModel, "of_mix", uses)
    return found


def test_a_mix_that_saves_less_than_expected_is_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    saving_only(0.85, monkeypatch)
    record = BudgetedMix(limits=("size=0.4",)).planned(program(), context())[1]
    assert record is not None
    assert record.limits[0].measured <= record.limits[0].allowed
    assert record.limits[0].expected < 0.9 * record.limits[0].allowed


def test_a_mix_that_is_far_below_the_limit_after_one_above_it_gets_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first trial seems to save little, as when a machine is busy; the others save what they do."""
    true_uses = WholeModel.of_mix
    found: list[float] = []

    def uses(whole: WholeModel, made: Any, quantities: Sequence[str]) -> list[float]:
        (use,) = true_uses(whole, made, quantities)
        most = whole.unchanged(quantities[0])
        found.append(use if found else most - 0.6 * (most - use))
        return found[-1:]

    monkeypatch.setattr(WholeModel, "of_mix", uses)
    record = BudgetedMix(limits=("size=0.4",)).planned(program(), context())[1]
    assert record is not None
    (limit,) = record.limits
    assert found[1] < 0.9 * limit.allowed
    assert found[1] < limit.measured <= limit.allowed
    assert record.expected == sum(one.cost for one in record.places)


def test_no_mix_is_lowered_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = tried_mixes(monkeypatch)
    saving_only(0.5, monkeypatch)
    with pytest.raises(CompilerError, match="no mix was found that keeps to"):
        BudgetedMix(limits=("size=0.45",)).planned(program(), context())
    assert len(tried) > 1
    assert len(set(tried)) == len(tried)


def test_a_limit_that_no_mix_holds_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    saving_only(0.3, monkeypatch)
    with pytest.raises(CompilerError) as caught:
        BudgetedMix(limits=("size=0.4",)).planned(program(), context())
    assert "no mix was found that keeps to size=0.4: the last, lowered, has size=0." in caught.value.problem


def test_a_plugin_of_one_file_changes_the_mix(tmp_path: Path) -> None:
    file = tmp_path / "only_bias.py"
    file.write_text(PLUGIN, encoding="utf-8")
    plugin = Registry([file], built_in=False, entry_points=False).passes()["only-bias"]
    assert issubclass(plugin, Graft)
    chosen = mixed("size=0.12", FewBits, plugin)[2]
    assert any(one.choice == "only-bias" for one in chosen.places)
    assert chosen.expected is not None
    without = mixed("size=0.12")[2]
    assert without.expected is not None
    assert chosen.expected < without.expected


def test_a_block_is_replaced_whole_or_layer_by_layer() -> None:
    places = find_places(program())
    parts = [place.name for place in places if place.is_part]
    assert parts == ["loud.up", "loud.down", "quiet.up", "quiet.down", "head"]
    blocks = [place for place in places if not place.is_part]
    covered = {place.name: [parts[index] for index in place.covers] for place in blocks}
    assert covered == {
        "loud": parts[:2],
        "loud (residual layer)": parts[:2],
        "quiet": parts[2:4],
        "quiet (residual layer)": parts[2:4],
        "quiet@2 (residual layer)": parts[2:4],
    }


class Tied(nn.Module):
    """A table that is the weight of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(64, 64), nn.Linear(64, 64, bias=False)
        self.head.weight = self.table.weight

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """indices [batch, tokens] to [batch, tokens, 64]."""
        return self.head(torch.tanh(self.table(indices)))


def test_sites_that_share_a_weight_are_one_part() -> None:
    (place,) = find_places(captured(Tied().eval(), indices=torch.arange(6).reshape(2, 3)))
    assert place.name == "table and head"
    assert place.kind == "embedding"


def test_grafts_in_passes_are_what_may_be_chosen() -> None:
    known = {one.name: one for one in (Quantize, LowRank)}
    specs = parse_passes("canonicalize,quantize:bits=4,low-rank,smooth")
    names = [spec.name for spec in with_budget(specs, ["size=0.3"], known, {})]
    assert names == ["canonicalize", "budget", "smooth"]
    budget = with_budget(specs, ["size=0.3"], known, {})[1]
    assert budget.options == {"limits": ("size=0.3",), "grafts": ("quantize:bits=4", "low-rank")}
    choices = BudgetedMix(limits=("size=0.3",), grafts=("quantize:bits=4",)).choices(context())
    assert [one.text for one in choices["linear"]] == ["quantize:bits=4"]
    assert Choice(Quantize(bits=2, group=64)).text == "quantize:bits=2:group=64"


def test_a_budget_without_limits_says_so() -> None:
    with pytest.raises(ValueError, match="it has no limits: write --budget"):
        BudgetedMix()
