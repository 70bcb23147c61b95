"""Recall probes: one for a model that looks back, chance for one that cannot, and never a failure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import zoo
from tiny_language_models import VOCABULARY, Bigram, LooksBack, captured_language_model, save_word_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from compiler.evidence.data import load_dataset
from compiler.evidence.probes.associative_recall import AssociativeRecall, pair_count
from compiler.evidence.probes.copying import Copying
from compiler.evidence.probes.joint_recall import CONTEXT_COUNT, JointRecall
from compiler.evidence.probes.needle import CITIES, Needle
from compiler.evidence.probes.recall import REACH, Recall, RecallProbe, recall_score
from compiler.pipeline import Pipeline
from compiler.program import Program
from compiler.recipe import build_passes, parse_passes
from compiler.registry import Registry
from compiler.rewriting import PassContext
from compiler.target import Target

PROBES: tuple[type[RecallProbe], ...] = (AssociativeRecall, Copying, JointRecall, Needle)


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Program], Program]:
    """The Program with the tokenizer of counted words."""
    folder = save_word_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return lambda program: replace(program, tokenizer=folder)


@pytest.fixture(scope="module")
def bigram() -> Program:
    return captured_language_model(Bigram(VOCABULARY))


@pytest.fixture(scope="module")
def looks_back() -> Program:
    return captured_language_model(LooksBack(VOCABULARY))


def test_they_are_registered() -> None:
    registered = Registry(entry_points=False).probes()
    assert {probe.name: probe for probe in PROBES} == {name: registered[name] for name in (p.name for p in PROBES)}


@pytest.fixture(scope="module")
def looks_back_two() -> Program:
    return captured_language_model(LooksBack(VOCABULARY, depth=2))


@pytest.mark.parametrize("probe", [AssociativeRecall, Copying], ids=lambda probe: probe.name)
def test_a_model_that_looks_back_recalls_all(probe: type[RecallProbe], looks_back: Program) -> None:
    assert probe().applies(looks_back)
    assert probe().score(looks_back, seed=0) == 1.0


def test_joint_recall_takes_a_model_that_looks_for_context_and_key(
    looks_back: Program, looks_back_two: Program
) -> None:
    assert JointRecall().score(looks_back_two, seed=0) == 1.0
    assert JointRecall().score(looks_back, seed=0) < 0.7


@pytest.mark.parametrize("probe", [AssociativeRecall, Copying, JointRecall], ids=lambda probe: probe.name)
def test_a_model_that_cannot_is_near_chance(probe: type[RecallProbe], bigram: Program) -> None:
    assert probe().score(bigram, seed=0) < 0.1
    assert probe().measure(bigram, seed=0) == probe().measure(bigram, seed=0)
    assert probe().measure(bigram, seed=0).nats > 2


def test_nats_are_those_of_the_answers_tokens() -> None:
    """Against a loop over the definition: the mean of -log p of each token of an answer, given what is before it."""
    generator = torch.Generator().manual_seed(0)
    recalls = [
        Recall(torch.tensor([3, 1, 4, 1, 5]), [slice(2, 4)]),
        Recall(torch.tensor([2, 0, 2]), [slice(1, 2), slice(2, 3)]),
    ]
    logits = [torch.randn(len(recall.tokens), 6, generator=generator) for recall in recalls]
    lost = []
    for recall, found in zip(recalls, logits, strict=True):
        for answer in recall.answers:
            for place in range(answer.start, answer.stop):
                weights = [math.exp(logit) for logit in found[place - 1].tolist()]
                lost.append(-math.log(weights[int(recall.tokens[place])] / sum(weights)))
    assert recall_score(recalls, iter(logits)).nats == pytest.approx(sum(lost) / len(lost), rel=1e-6)


def test_copies_are_two_of_one_span(with_many_words: Program) -> None:
    for recall in Copying().drawn(with_many_words, 0):
        first, second = recall.tokens.chunk(2)
        assert torch.equal(first, second)
        assert len(set(first.tolist())) == len(first) == REACH
        assert [answer.start for answer in recall.answers] == list(range(REACH + 1, 2 * REACH))


def test_every_value_that_is_asked_for_was_told(with_many_words: Program) -> None:
    for recall in AssociativeRecall().drawn(with_many_words, 0):
        tokens = recall.tokens.tolist()
        count = pair_count(REACH)
        assert len(recall.answers) == count
        told = set(zip(tokens[: 2 * count : 2], tokens[1 : 2 * count : 2], strict=True))
        asked = {(tokens[answer.start - 1], tokens[answer.start]) for answer in recall.answers}
        assert asked == told
        assert len({token for pair in told for token in pair}) == 2 * count


def test_a_key_stands_for_another_value_in_each_context(with_many_words: Program) -> None:
    for recall in JointRecall().drawn(with_many_words, 0):
        asked = [tuple(recall.tokens[answer.start - 2 : answer.stop].tolist()) for answer in recall.answers]
        told = [tuple(line) for line in recall.tokens.view(-1, 3)[: len(asked)].tolist()]
        assert sorted(asked) == sorted(told)
        contexts, keys, values = (set(column) for column in zip(*told, strict=True))
        assert len(contexts) == CONTEXT_COUNT
        assert len(keys) * CONTEXT_COUNT == len(values) == len(told)


@pytest.mark.parametrize("probe", [AssociativeRecall, Copying, JointRecall], ids=lambda probe: probe.name)
def test_ranking_and_scoring_draw_apart(probe: type[RecallProbe], with_many_words: Program) -> None:
    scoring, ranking = (probe().drawn(with_many_words, 0, part) for part in ("scoring", "ranking"))
    assert not any(torch.equal(one.tokens, other.tokens) for one in scoring for other in ranking)


def test_needles_for_ranking_and_scoring_share_no_city_and_no_prose(reads_bytes: Program) -> None:
    scoring, ranking = (
        [bytes(recall.tokens.tolist()).decode() for recall in Needle().drawn(reads_bytes, 0, part)]
        for part in ("scoring", "ranking")
    )
    assert len(scoring) == len(ranking) == len(CITIES) // 2
    lines = [{line for text in texts for line in text.split("\n") if len(line) > 30} for texts in (scoring, ranking)]
    assert not lines[0] & lines[1]


def test_a_model_that_reads_little_is_asked_less_far_back() -> None:
    short = captured_language_model(Bigram(VOCABULARY))
    tokens = short.inputs[0]
    batch, length = tokens.shape
    cut = tuple(
        replace(spec, shape=(batch, replace(length, maximum=100)))
        if spec.name in ("input_ids", "attention_mask")
        else spec
        for spec in short.inputs
    )
    short = replace(short, inputs=cut)
    assert Copying().applies(short)
    assert {len(recall.tokens) for recall in Copying().drawn(short, 0)} == {64}
    too_short = tuple(replace(spec, shape=(batch, replace(length, maximum=20))) for spec in cut)
    assert not Copying().applies(replace(short, inputs=too_short))


def test_a_model_is_asked_within_the_context_it_was_made_for(with_many_words: Program) -> None:
    short = replace(with_many_words, context_length=100)
    for probe in (AssociativeRecall(), Copying(), JointRecall()):
        assert {len(recall.tokens) <= 100 for recall in probe.drawn(short, 0)} == {True}


def test_farther_questions_can_be_asked(with_many_words: Program) -> None:
    assert {len(recall.tokens) for recall in Copying().drawn(with_many_words, 0, reach=256)} == {512}


@pytest.fixture(scope="module")
def with_many_words() -> Program:
    return captured_language_model(Bigram(2000))


def test_the_needle_is_stated_once_and_asked_for_last(reads_bytes: Program) -> None:
    depths = []
    for city, recall in zip(CITIES[1::2], Needle().drawn(reads_bytes, 0), strict=True):
        (answer,) = recall.answers
        assert answer.stop == len(recall.tokens)
        text = bytes(recall.tokens.tolist()).decode()
        number = bytes(recall.tokens[answer].tolist()).decode().strip()
        statement = f"The secret number of {city} is {number}"
        assert text.count(statement) == 2
        assert text.endswith(statement)
        depths.append(text.index(statement))
    assert depths == sorted(depths)
    assert depths[0] < 5 < 40 < depths[-1] <= REACH // 2


@pytest.fixture(scope="module")
def reads_bytes(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A model with a token for every ASCII character."""
    folder = tmp_path_factory.mktemp("bytes")
    written = {chr(code): code for code in range(128)}
    tokenizer = Tokenizer(models.WordLevel(written, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return replace(captured_language_model(Bigram(128)), tokenizer=folder)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_tiny_models_are_scored_or_left_out(
    probe: type[RecallProbe], bigram: Program, with_tokenizer: Callable[[Program], Program]
) -> None:
    program = with_tokenizer(bigram)
    assert probe().applies(program)
    assert 0 <= probe().score(program, seed=3) <= 1
    small = captured_language_model(Bigram(9))
    assert probe is Needle or 0 <= probe().score(small, seed=0) <= 1


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_they_do_not_apply_to_other_models(probe: type[RecallProbe], bigram: Program) -> None:
    assert not probe().applies(replace(bigram, role="encoder"))
    assert not probe().applies(replace(bigram, inputs=bigram.inputs[1:]))


def test_a_needle_needs_a_tokenizer(bigram: Program) -> None:
    assert not Needle().applies(bigram)


def test_an_incremental_program_is_judged_as_the_one_it_was() -> None:
    """Perplexity, divergence and a probe, read from the start with empty states."""
    program = zoo.program("llama")
    context = PassContext(Target("cpu"), load_dataset(None, program))
    registry = Registry(entry_points=False)
    passes = build_passes(parse_passes("make-incremental"), registry.passes(), registry.pipelines())
    after, before, records = Pipeline(passes, context, probes=[Copying()]).run(program)
    assert after.states
    fidelity = records[-1].evidence.fidelity
    assert fidelity is not None
    assert fidelity.perplexity_ratio == pytest.approx(1.0, abs=1e-5)
    assert fidelity.kl_divergence == pytest.approx(0.0, abs=1e-6)
    assert records[-1].evidence.probes == before.probes
    assert set(before.probes) == {"copying"}
