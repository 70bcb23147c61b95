"""`layers=auto-...`: costs are those of the whole Program with one site replaced, however little of it is run again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from compiler.errors import CompilerError
from compiler.evidence.data import Dataset, load_dataset
from compiler.evidence.fidelity import measure_fidelity, reference_outputs
from compiler.evidence.probes.associative_recall import AssociativeRecall
from compiler.evidence.probes.copying import Copying
from compiler.frontends.torch_export import capture
from compiler.grafting import apply_graft
from compiler.pipeline import Pipeline
from compiler.program import Program
from compiler.rewriting import Graft, PassContext, Replacement
from compiler.selection.choose_sites import ChosenSites, choose_sites
from compiler.selection.layer_choice import ChoosesLayers
from compiler.sites import Refusal, Site, find_sites
from compiler.target import Target

PROBES = (Copying(), AssociativeRecall())
VOCABULARY = 400


class Faded(nn.Module):
    """A linear layer whose weight is too small by a factor."""

    def __init__(self, weight: Tensor, bias: Tensor | None, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight * factor)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Fade(ChoosesLayers, Graft):
    """Shrinks the weights of output projections."""

    name: ClassVar[str] = "fade"
    site_kinds: ClassVar[tuple[str, ...]] = ("linear",)
    proposed: ClassVar[list[str]] = []

    factor: Annotated[float, "what weights are multiplied with"] = 0.0

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        if site.name == "head":
            return Refusal("it is the head")
        self.proposed.append(site.name)
        weight, bias = program.weight(site.bindings["weight"]), site.bindings["bias"]
        return Replacement(
            Faded(weight, None if bias is None else program.weight(bias), self.factor), f"faded to {self.factor:g}"
        )


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own for each test."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    Fade.proposed.clear()
    return tmp_path


class Averages(nn.Module):
    """A language model of four layers, each of which mixes the mean of all tokens so far into a token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 16)
        self.layers = nn.ModuleList(nn.ModuleDict({"mix": nn.Linear(16, 16)}) for _ in range(4))
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        for layer in self.layers:
            count = torch.arange(1, x.shape[1] + 1)[:, None]
            x = x + torch.tanh(layer["mix"](x.cumsum(1) / count))
        return self.head(x)


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    ids = torch.tensor([[1, 2, 3, 1, 2], [4, 5, 6, 7, 8]])
    dims = {"input_ids": {0: "batch", 1: "sequence"}}
    return capture(Averages(), {"input_ids": ids}, source="averages", role="causal-lm", dynamic=dims)


def context_of(program: Program, **changes: Any) -> PassContext:
    return PassContext(Target("cpu"), load_dataset(None, program), probes=PROBES, **changes)


def chosen(graft: Fade, program: Program, context: PassContext) -> ChosenSites:
    sites = [site for site in find_sites(program, ("linear",)) if isinstance(site, Site)]
    return choose_sites(graft, sites, program, context)


def test_a_cost_is_that_of_the_whole_program_with_the_site_replaced(program: Program) -> None:
    """The reference runs everything: one site is grafted, and the result measured as any Program is."""
    context = context_of(program)
    ranking = chosen(Fade("auto-0.5"), program, context).ranking
    assert ranking is not None
    expected = reference_outputs(program, context.data.ranking)
    assert {cost.site for cost in ranking.costs} == set(Fade.proposed)
    for cost in ranking.costs:
        alone, result = apply_graft(Fade(cost.site), program, (), context)
        assert result.changed == (cost.site,)
        fidelity = measure_fidelity(alone, expected, context.data, context.data.ranking)
        assert cost.error == pytest.approx(fidelity.kl_divergence, rel=1e-3, abs=1e-7)
        for probe in PROBES:
            before, after = (probe.measure(one, context.seed, "ranking").nats for one in (program, alone))
            assert cost.recall[probe.name] == pytest.approx(after - before, abs=1e-5)


def test_the_cheapest_share_is_replaced_and_the_others_say_why(program: Program) -> None:
    context = context_of(program)
    graft = Fade("auto-0.5", rank="kl")
    found = chosen(graft, program, context)
    assert found.ranking is not None
    assert found.ranking.count == 2
    assert found.ranking.chosen() == {cost.node for cost in found.ranking.ordered()[:2]}
    after, _, records = Pipeline([Fade("auto-0.2", rank="kl")], context).run(program)
    result = records[0].result
    assert result.changed == (found.ranking.ordered()[0].site,)
    assert result.ranking is not None
    assert after.text() != program.text()
    reasons = {outcome.site: outcome.note for outcome in result.outcomes if outcome.state == "refused"}
    dearest = found.ranking.ordered()[-1]
    assert reasons[dearest.site].startswith("layers=auto-0.2 leaves it out: a cost of ")
    assert reasons[dearest.site].endswith("place 4 of 4")
    assert reasons["head"] == "it is the head"


def test_the_other_terms_limit_what_auto_may_take(program: Program) -> None:
    found = chosen(Fade("auto-1+not-1+*mix"), program, context_of(program))
    assert found.ranking is not None
    assert [site.name for site in found.sites] == ["layers.0.mix", "layers.2.mix", "layers.3.mix"]
    assert {cost.site for cost in found.ranking.costs} <= {site.name for site in found.sites}


def test_fixed_layers_are_not_measured(program: Program, own_cache: Path) -> None:
    found = chosen(Fade("*.1.*"), program, context_of(program))
    assert found.ranking is None
    assert [site.name for site in found.sites] == ["layers.1.mix"]
    assert not any(own_cache.iterdir())


def test_what_was_measured_is_not_measured_again(program: Program) -> None:
    context = context_of(program)
    first = chosen(Fade("auto-0.5"), program, context).ranking
    Fade.proposed.clear()
    again = chosen(Fade("auto-0.2"), program, context).ranking
    assert first is not None
    assert again is not None
    assert not Fade.proposed
    assert again.costs == first.costs
    assert again.reused == len(first.costs)


@dataclass(frozen=True)
class FadeLater(Fade):
    """Is ranked as if it were another graft."""

    name: ClassVar[str] = "fade-later"

    @property
    def ranked_as(self) -> Graft:
        return Fade(factor=self.factor)


def test_grafts_that_are_ranked_alike_are_measured_once(program: Program, own_cache: Path) -> None:
    first = chosen(Fade("auto-0.5"), program, context_of(program)).ranking
    again = chosen(FadeLater("auto-0.25"), program, context_of(program)).ranking
    assert first is not None
    assert again is not None
    assert (again.costs, again.reused) == (first.costs, len(first.costs))
    assert len(digests(own_cache)) == 1


def test_an_interrupted_ranking_goes_on_where_it_stopped(program: Program) -> None:
    stopped = 3

    def stop(message: str) -> None:
        if f", {stopped} of" in message:
            raise KeyboardInterrupt

    graft = Fade("auto-0.5+layers.*")
    with pytest.raises(KeyboardInterrupt):
        chosen(graft, program, context_of(program, progress=stop))
    Fade.proposed.clear()
    ranking = chosen(graft, program, context_of(program)).ranking
    assert ranking is not None
    assert (len(ranking.costs), ranking.reused, len(Fade.proposed)) == (4, stopped - 1, 2)


def digests(cache: Path) -> set[str]:
    return {folder.name for folder in (cache / "rankings").iterdir()}


def test_anything_a_cost_depends_on_makes_it_anew(program: Program, own_cache: Path) -> None:
    context = context_of(program)
    other_weights = program.copy()
    name, weight = next(iter(program.weights().items()))
    other_weights.set_weight(name, weight * 1.5)
    data = replace(context.data, calibration=context.data.calibration[:-1])
    changed = [
        (Fade("auto-0.5"), program, context),
        (Fade("auto-0.5", factor=0.5), program, context),
        (Fade("auto-0.5", rank="kl"), program, context),
        (Fade("auto-0.5"), other_weights, context),
        (Fade("auto-0.5"), program, replace(context, seed=1)),
        (Fade("auto-0.5"), program, replace(context, data=data)),
        (Fade("auto-0.5"), program, replace(context, probes=PROBES[:1])),
    ]
    for count, (graft, one, given) in enumerate(changed, 1):
        chosen(graft, one, given)
        assert len(digests(own_cache)) == count


def test_a_broken_cache_is_measured_again(program: Program, own_cache: Path) -> None:
    first = chosen(Fade("auto-0.5"), program, context_of(program)).ranking
    (kept,) = (own_cache / "rankings").glob("*/costs.json")
    for text in ("", "[", "3", json.dumps([{"node": 1}])):
        kept.write_text(text, encoding="utf-8")
        ranking = chosen(Fade("auto-0.5"), program, context_of(program)).ranking
        assert ranking is not None
        assert ranking.reused == 0
        assert ranking.costs == first.costs


def test_encoders_are_ranked_by_the_error_of_what_they_give(program: Program) -> None:
    encoder = replace(program, role="encoder")
    context = context_of(encoder)
    ranking = chosen(Fade("auto-0.5"), encoder, context).ranking
    assert ranking is not None
    assert ranking.error_name == "1 - cosine"
    assert all(not cost.recall for cost in ranking.costs)
    worst = ranking.ordered()[-1]
    expected = reference_outputs(encoder, context.data.ranking)
    alone, _ = apply_graft(Fade(worst.site), encoder, (), context)
    fidelity = measure_fidelity(alone, expected, context.data, context.data.ranking)
    assert worst.error == pytest.approx(1 - fidelity.mean_cosine, rel=1e-3)


def test_a_term_that_names_no_site_is_the_users_error(program: Program) -> None:
    with pytest.raises(CompilerError, match="choosing the layers of fade: layers=9: '9' names none of"):
        chosen(Fade("9"), program, context_of(program))


def test_ranking_takes_data(program: Program) -> None:
    context = replace(context_of(program), data=Dataset("none", (), ()))
    with pytest.raises(CompilerError, match="there is no data to rank sites on"):
        chosen(Fade("auto-0.5"), program, context)
