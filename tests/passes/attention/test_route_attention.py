"""Routed attention: a router learns which contexts recall, keeps all tokens for those, and the branch is a real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from decoding_checks import run_onnx
from torch import Tensor, nn

from compiler import options
from compiler.errors import CompilerError
from compiler.evidence.data import WINDOW, Dataset
from compiler.evidence.probes.associative_recall import AssociativeRecall
from compiler.evidence.probes.copying import Copying
from compiler.evidence.probes.recall import Recall, recall_batch
from compiler.frontends.torch_export import capture
from compiler.grafting import apply_graft
from compiler.passes.attention.route_attention import RouteAttention
from compiler.passes.attention.routing.contexts import (
    REPEATED,
    TEXT,
    Observation,
    language_contexts,
    needing_all,
)
from compiler.passes.attention.routing.routed_attention import pooled
from compiler.passes.attention.routing.training import MARGIN, trained_router
from compiler.passes.attention.sliding_window import SlidingWindow
from compiler.pipeline import Pipeline
from compiler.program import Program
from compiler.rewriting import PassContext, PassResult
from compiler.sites import Site, find_sites
from compiler.target import Target

VOCABULARY, PERIOD, LENGTH = 160, 8, 96
PROBES = (Copying(), AssociativeRecall())
FIRST = 48
OPTIONS = {"window": 16, "sinks": 2, "context": FIRST}
WINDOW_OPTIONS = {"window": 16, "sinks": 2}
ROUTED, SCORE = "regraft.routed_attention.default", "regraft.context_score.default"


class Induction(nn.Module):
    """After token x comes what came after x before, by attention: queries are tokens, keys the tokens before them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.eye(VOCABULARY))
        now, before = torch.eye(2 * VOCABULARY).split(VOCABULARY)
        for name, weight in (("q_proj", 30 * now), ("k_proj", 30 * before), ("v_proj", now)):
            layer = nn.Linear(2 * VOCABULARY, VOCABULARY, bias=False)
            layer.weight.data.copy_(weight)
            setattr(self, name, layer)

    def forward(self, input_ids: Tensor) -> Tensor:
        tokens = self.codes[input_ids]  # [batch, tokens, vocabulary]
        before = nn.functional.pad(tokens, (0, 0, 1, 0))[:, :-1]
        hidden = torch.cat([tokens, before], -1)
        q, k, v = (layer(hidden).unsqueeze(1) for layer in (self.q_proj, self.k_proj, self.v_proj))
        found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return 10 * found.squeeze(1)


def prose(generator: torch.Generator) -> Tensor:
    """Eight tokens of the first half of the vocabulary over and over, as locally told as text: [tokens]."""
    period = torch.randperm(VOCABULARY // 2, generator=generator)[:PERIOD]
    return period.repeat(LENGTH // PERIOD)


@pytest.fixture(scope="module")
def program() -> Program:
    ids = torch.tensor([[1, 2, 3, 1, 2], [4, 5, 6, 7, 8]])
    dims = {"input_ids": {0: "batch", 1: "sequence"}}
    return capture(Induction(), {"input_ids": ids}, source="induction", role="causal-lm", dynamic=dims)


def context_of(**changes: Any) -> PassContext:
    generator = torch.Generator().manual_seed(0)
    batches = tuple((prose(generator)[None],) for _ in range(18))
    return PassContext(Target("cpu"), Dataset("prose", batches[:2], batches[2:], unit=WINDOW), probes=PROBES, **changes)


@pytest.fixture(scope="module")
def routed(program: Program) -> tuple[Program, PassResult]:
    return apply_graft(RouteAttention(**OPTIONS), program, (), context_of())


def logits(program: Program, tokens: Tensor) -> Tensor:
    return program.run(*recall_batch(program, Recall(tokens, ())))[0]


def needs_all(program: Program, tokens: Tensor) -> bool:
    """What the router of its one layer says."""

    class Reader(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if str(n.target) == SCORE:
                choices.append(bool(value[0] > 0))
            return value

    choices: list[bool] = []
    Reader(program.graph_module).run(*recall_batch(program, Recall(tokens, ())))
    return choices[0]


def test_recall_keeps_all_tokens_and_prose_gets_the_window(
    program: Program, routed: tuple[Program, PassResult]
) -> None:
    """On contexts that nothing was learned from: others of the same kinds."""
    after, result = routed
    assert len(result.changed) == 1
    near, _ = apply_graft(SlidingWindow(**WINDOW_OPTIONS), program, (), context_of())
    generator = torch.Generator().manual_seed(5)
    for tokens in (prose(generator) for _ in range(8)):
        assert not needs_all(after, tokens)
        found = logits(after, tokens)
        torch.testing.assert_close(found[:, :FIRST], logits(program, tokens)[:, :FIRST], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found[:, FIRST:], logits(near, tokens)[:, FIRST:], rtol=1e-5, atol=1e-4)
    for probe in PROBES:
        assert all(needs_all(after, recall.tokens) for recall in probe.drawn(program, 7))
        before, windowed, now = (probe.measure(one, 7) for one in (program, near, after))
        assert windowed.accuracy < 0.5 < before.accuracy
        assert now.accuracy >= 0.98 * before.accuracy
        assert now.nats == pytest.approx(before.nats, abs=1e-4)


def test_rows_of_a_batch_choose_for_themselves(program: Program, routed: tuple[Program, PassResult]) -> None:
    recall = Copying().drawn(program, 3)[0].tokens[:LENGTH]
    batch = torch.stack([prose(torch.Generator().manual_seed(5)), recall])
    for row, found in zip(batch, routed[0].run(batch)[0], strict=True):
        torch.testing.assert_close(found, logits(routed[0], row)[0])


def test_no_token_sees_a_later_one(program: Program, routed: tuple[Program, PassResult]) -> None:
    """What follows the tokens that a router reads changes nothing before it."""
    recall = Copying().drawn(program, 3)[0].tokens
    for count in (FIRST - 5, FIRST, FIRST + 30):
        shorter = logits(routed[0], recall[:count])
        torch.testing.assert_close(logits(routed[0], recall)[:, :count], shorter)


def test_the_note_says_how_the_router_does_on_what_it_has_not_seen(routed: tuple[Program, PassResult]) -> None:
    (outcome,) = routed[1].outcomes
    assert outcome.state == "grafted"
    assert outcome.note == (
        "window of 16 and 2 sinks by a router: of contexts held out, 10 of 10 that lose little get the window, "
        "2 of 2 others full attention"
    )


def test_the_branch_is_a_branch(program: Program, routed: tuple[Program, PassResult], tmp_path: Path) -> None:
    """In ONNX what is not taken is not run, and both sides give the same numbers at another size."""
    after = routed[0]
    assert [node.target for node in after.graph.nodes if str(node.target) == ROUTED]
    run = run_onnx(after, tmp_path)
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert "If" in kinds
    assert "Attention" not in kinds
    for tokens in (prose(torch.Generator().manual_seed(9))[:77], Copying().drawn(program, 4)[0].tokens):
        found = run({"input_ids": tokens[None]})["output"]
        torch.testing.assert_close(found, logits(after, tokens), rtol=1e-4, atol=1e-4)


def test_where_nothing_is_lost_the_window_stands_alone(program: Program) -> None:
    """Static routing: no router and no branch."""
    after, result = apply_graft(RouteAttention(loss=1e6, forgotten=1, **OPTIONS), program, (), context_of())
    assert result.outcomes[0].note == "window of 16 and 2 sinks for every context"
    assert ROUTED not in {str(node.target) for node in after.graph.nodes}
    near, _ = apply_graft(SlidingWindow(**WINDOW_OPTIONS), program, (), context_of())
    assert after.text() == near.text()


def test_where_all_is_lost_attention_stays(program: Program) -> None:
    after, result = apply_graft(RouteAttention(loss=1e-12, window=2, sinks=0, context=FIRST), program, (), context_of())
    assert after is program
    assert result.refusals[0].reason == "every context loses more than 1e-12 nats a token in windows, or recalls less"


def test_recall_that_costs_little_divergence_still_gets_all_tokens(program: Program) -> None:
    """Windows in layers that matter little: few nats, and yet answers that are wrong from now on."""
    after, result = apply_graft(RouteAttention(loss=1e6, **OPTIONS), program, (), context_of())
    assert "by a router" in (result.outcomes[0].note or "")
    for probe in PROBES:
        assert probe.measure(after, 7).accuracy >= 0.98 * probe.measure(program, 7).accuracy
    assert not needs_all(after, prose(torch.Generator().manual_seed(5)))


def test_which_contexts_need_all_tokens() -> None:
    """By divergence each for itself, by right answers all of a kind."""
    seen = [
        Observation(TEXT, 0.3, 0, 0, {}),
        Observation(TEXT, 1.3, 0, 0, {}),
        Observation("copying", 0.1, 50, 50, {}),
        Observation("copying", 0.1, 50, 47, {}),
        Observation("needle", 0.2, 50, 49, {}),
        Observation("needle", 0.2, 50, 50, {}),
    ]
    assert needing_all(seen, loss=1.0, forgotten=0.02).tolist() == [False, True, True, True, False, False]
    assert needing_all(seen, loss=1.0, forgotten=0.05).tolist() == [False, True, False, False, False, False]
    assert needing_all(seen, loss=0.25, forgotten=1.0).tolist() == [True, True, False, False, False, False]


def test_contexts_that_no_router_tells_apart_keep_attention() -> None:
    seen = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    needs = torch.arange(30) % 2 == 0
    _, judged = trained_router(torch.cat([seen, seen]), torch.cat([needs, ~needs]), ["text"] * 60)
    assert judged.near < judged.others


def test_what_was_learned_from_gets_full_attention_where_it_needs_it() -> None:
    """However the classes overlap, the router errs on the safe side."""
    generator = torch.Generator().manual_seed(1)
    seen = torch.randn(60, 4, generator=generator)
    needs = torch.rand(60, generator=generator) < seen[:, 0].sigmoid()
    router, _ = trained_router(seen, needs, ["text"] * 60)
    learned = torch.arange(60) % 3 != 2
    scores = (seen @ router.weight + router.bias).detach()
    assert float(scores[learned & needs].min()) >= MARGIN - 1e-3


def test_contexts_are_text_its_repetition_and_recall(program: Program) -> None:
    contexts = language_contexts(program, context_of(), window=16, first=FIRST)
    kinds = [context.kind for context in contexts]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        TEXT: 16,
        REPEATED: 16,
        "associative-recall": 4,
        "copying": 4,
    }
    repeated = next(context for context in contexts if context.kind == REPEATED)
    span = FIRST // 2
    assert torch.equal(repeated.tokens[span:], repeated.tokens[:-span])
    assert repeated.places.tolist() == list(range(span, LENGTH))
    assert not language_contexts(program, context_of(), window=16, first=1000)
    judging = [recall.tokens for probe in PROBES for recall in probe.drawn(program, 0)]
    assert not any(torch.equal(context.tokens, tokens) for context in contexts for tokens in judging)


def test_pooling_is_mean_and_maximum() -> None:
    hidden = torch.tensor([[[1.0, -2.0], [3.0, -4.0]]])
    assert pooled(torch.cat([hidden, 9 + hidden], 1), 2).tolist() == [[2.0, -3.0, 3.0, -2.0]]


def test_ranking_sees_windows_not_routers(program: Program) -> None:
    sites = [site for site in find_sites(program, ("token-mixer",)) if isinstance(site, Site)]
    (proposal,) = RouteAttention(**OPTIONS).ranked_as.propose_all(sites, program, context_of())
    assert proposal.note == "window of 16 and 2 sinks"


def test_evidence_is_taken_of_what_is_routed(program: Program) -> None:
    _, before, records = Pipeline([RouteAttention(**OPTIONS)], context_of(), probes=PROBES).run(program)
    assert records[0].evidence.probes == before.probes
    assert records[0].evidence.fidelity is not None
    assert records[0].evidence.fidelity.kl_divergence < 1e-3


def test_models_of_no_language_are_refused(program: Program) -> None:
    _, result = apply_graft(RouteAttention(**OPTIONS), replace(program, role="encoder"), (), context_of())
    assert result.refusals[0].reason == "what a context needs is known of language models alone"


def test_windows_that_are_refused_are_refused_here(program: Program) -> None:
    ids, dims = torch.ones(2, 12, dtype=torch.int64), {"input_ids": {0: "batch"}}
    short = capture(Induction(), {"input_ids": ids}, source="short", role="causal-lm", dynamic=dims)
    _, result = apply_graft(RouteAttention(**OPTIONS), short, (), replace(context_of(), probes=()))
    assert result.refusals[0].reason == "it reads 12 tokens, no more than the window"


def test_contexts_that_are_too_short_are_refused(program: Program) -> None:
    _, result = apply_graft(RouteAttention(window=16, context=1000), program, (), context_of())
    assert result.refusals[0].reason == "no context is longer than the 1000 tokens that a router reads"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 0}, "window=0"),
        ({"loss": 0}, "loss=0"),
        ({"forgotten": 1.5}, "forgotten=1.5"),
        ({"sinks": -1}, "sinks=-1"),
        ({"context": 0}, "context=0"),
    ],
)
def test_options_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CompilerError, match=message):
        options.build(RouteAttention, values)
