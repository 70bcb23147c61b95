"""Recall probes: one for a model that looks back, chance for one that cannot, and never a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import zoo
from tiny_language_models import VOCABULARY, Bigram, LooksBack, captured_language_model, save_word_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from compiler.evidence.data import load_dataset
from compiler.evidence.probes.associative_recall import PAIR_COUNT, AssociativeRecall
from compiler.evidence.probes.copying import SPAN, Copying
from compiler.evidence.probes.needle import CITIES, Needle
from compiler.evidence.probes.recall import RecallProbe
from compiler.pipeline import Pipeline
from compiler.program import Program
from compiler.recipe import build_passes, parse_passes
from compiler.registry import Registry
from compiler.rewriting import PassContext
from compiler.target import Target

PROBES: tuple[type[RecallProbe], ...] = (AssociativeRecall, Copying, Needle)


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


@pytest.mark.parametrize("probe", [AssociativeRecall, Copying], ids=lambda probe: probe.name)
def test_a_model_that_looks_back_recalls_all(probe: type[RecallProbe], looks_back: Program) -> None:
    assert probe().applies(looks_back)
    assert probe().score(looks_back, seed=0) == 1.0


@pytest.mark.parametrize("probe", [AssociativeRecall, Copying], ids=lambda probe: probe.name)
def test_a_model_that_cannot_is_near_chance(probe: type[RecallProbe], bigram: Program) -> None:
    assert probe().score(bigram, seed=0) < 0.1
    assert probe().score(bigram, seed=0) == probe().score(bigram, seed=0)


def test_copies_are_two_of_one_span(bigram: Program) -> None:
    for recall in Copying().recalls(bigram, torch.Generator().manual_seed(0)):
        first, second = recall.tokens.chunk(2)
        assert torch.equal(first, second)
        assert len(set(first.tolist())) == len(first) == SPAN
        assert [answer.start for answer in recall.answers] == list(range(SPAN + 1, 2 * SPAN))


def test_every_value_that_is_asked_for_was_told(bigram: Program) -> None:
    for recall in AssociativeRecall().recalls(bigram, torch.Generator().manual_seed(0)):
        tokens = recall.tokens.tolist()
        assert len(recall.answers) == PAIR_COUNT
        told = set(zip(tokens[: 2 * PAIR_COUNT : 2], tokens[1 : 2 * PAIR_COUNT : 2], strict=True))
        asked = {(tokens[answer.start - 1], tokens[answer.start]) for answer in recall.answers}
        assert asked == told
        assert len({token for pair in told for token in pair}) == 2 * PAIR_COUNT


def test_the_needle_is_stated_once_and_asked_for_last(reads_bytes: Program) -> None:
    depths = []
    for city, recall in zip(CITIES, Needle().recalls(reads_bytes, torch.Generator().manual_seed(0)), strict=True):
        (answer,) = recall.answers
        assert answer.stop == len(recall.tokens)
        text = bytes(recall.tokens.tolist()).decode()
        number = bytes(recall.tokens[answer].tolist()).decode().strip()
        statement = f"The secret number of {city} is {number}"
        assert text.count(statement) == 2
        assert text.endswith(statement)
        depths.append(text.index(statement))
    assert depths == sorted(depths)
    assert depths[0] < 5 < 40 < depths[-1]


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
