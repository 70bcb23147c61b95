"""Perplexity, divergence and choices of language models against plain loops in float64 and against transformers."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zoo
from tiny_language_models import Bigram, captured_language_model, save_word_tokenizer
from torch import Tensor

from compiler.evidence.data import Dataset, load_dataset
from compiler.evidence.fidelity import main_outputs, measure_fidelity, reference_outputs
from compiler.evidence.language import Predictions, divergences, is_language_model, perplexity
from compiler.pipeline import Pipeline
from compiler.program import Program
from compiler.registry import Registry
from compiler.rewriting import PassContext
from compiler.target import Target

VOCABULARY = 11
HALF_A_STEP = 2**-11
"""How exactly log-probabilities are kept. To first order the divergence is off by at most this share of the mean
|log p - log q|.
"""
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def log_softmax(row: Sequence[float]) -> list[float]:
    """In Python's own floats."""
    largest = max(row)
    total = math.log(sum(math.exp(value - largest) for value in row)) + largest
    return [value - total for value in row]


def plain_language_figures(ids: Tensor, mask: Tensor, before: Tensor, now: Tensor) -> tuple[float, float, float, float]:
    """Perplexity before and now, mean divergence in nats and top-1 agreement, token by token."""
    likelihoods: tuple[list[float], list[float]] = ([], [])
    divergence, agreed = [], []
    for row in range(len(ids)):
        for place in range(ids.shape[1]):
            if not mask[row, place]:
                continue
            p, q = (log_softmax(logits[row, place].double().tolist()) for logits in (before, now))
            divergence.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
            agreed.append(p.index(max(p)) == q.index(max(q)))
            if place + 1 < ids.shape[1] and mask[row, place + 1]:
                target = int(ids[row, place + 1])
                likelihoods[0].append(p[target])
                likelihoods[1].append(q[target])
    first, second = (math.exp(-sum(values) / len(values)) for values in likelihoods)
    return first, second, sum(divergence) / len(divergence), sum(agreed) / len(agreed)


@pytest.fixture(scope="module")
def bigram() -> Program:
    return captured_language_model(Bigram(VOCABULARY))


def logits_near(noise: float) -> tuple[Tensor, Tensor]:
    """Peaked logits for IDS, and others near them."""
    generator = torch.Generator().manual_seed(0)
    before = 4 * torch.randn(2, 5, VOCABULARY, generator=generator)
    return before, before + noise * torch.randn(2, 5, VOCABULARY, generator=generator)


@pytest.mark.parametrize("noise", [0.01, 0.3, 3.0])
def test_figures_equal_plain_loops(bigram: Program, noise: float) -> None:
    before, now = logits_near(noise)
    fidelity = Predictions(bigram, [(IDS, MASK)], [before]).compare([now])
    first, second, divergence, agreement = plain_language_figures(IDS, MASK, before, now)
    assert fidelity.perplexity == pytest.approx(second, rel=1e-6)
    assert fidelity.perplexity_ratio == pytest.approx(second / first, rel=1e-6)
    assert fidelity.kl_divergence == pytest.approx(divergence, abs=HALF_A_STEP * 2 * noise + 1e-7)
    assert fidelity.top1_agreement == agreement
    assert fidelity.drop == 1 - agreement
    assert fidelity.row_count == int(MASK.sum())


def test_nothing_changed_means_nothing_lost(bigram: Program) -> None:
    before, _ = logits_near(0.0)
    fidelity = Predictions(bigram, [(IDS, MASK)], [before]).compare([before])
    assert (fidelity.perplexity_ratio, fidelity.top1_agreement, fidelity.drop) == (1.0, 1.0, 0.0)
    assert fidelity.kl_divergence is not None
    assert fidelity.kl_divergence < 1e-6
    assert fidelity.largest_error < 2**-10
    assert fidelity.worst_cosine > 1 - 1e-6


def test_padding_does_not_count(bigram: Program) -> None:
    before, now = logits_near(0.1)
    kept = Predictions(bigram, [(IDS, MASK)], [before])
    broken = torch.where(MASK.bool()[..., None], now, torch.nan)
    assert kept.compare([broken]) == kept.compare([now])


def test_broken_logits_are_infinitely_far(bigram: Program) -> None:
    before, now = logits_near(0.1)
    now[0, 1, 2] = torch.nan
    fidelity = Predictions(bigram, [(IDS, MASK)], [before]).compare([now])
    assert fidelity.kl_divergence == math.inf
    assert fidelity.perplexity == math.inf
    assert fidelity.worst_cosine == -1.0


def test_tokens_that_can_never_come_cost_nothing() -> None:
    log_p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()
    log_q = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    torch.testing.assert_close(divergences(log_p, log_q), torch.tensor([expected, 0.0], dtype=torch.float64))


def test_perplexity_of_nothing_and_of_the_impossible() -> None:
    assert perplexity(0.0, 0) is None
    assert perplexity(-math.inf, 2) == math.inf
    assert perplexity(-4 * math.log(8.0), 4) == pytest.approx(8.0)


def test_perplexity_is_exp_of_the_loss_of_transformers() -> None:
    program, model = zoo.captured("llama"), zoo.model("llama")
    ids = torch.randint(3, 90, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[2, 7:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    (causal,) = [part for part in model.module.modules() if type(part).__name__ == "LlamaForCausalLM"]
    with torch.no_grad():
        loss = float(causal(input_ids=ids, attention_mask=mask, labels=labels).loss)
    data = Dataset("random", ((ids, mask),), (), mask_index=1)
    reference = reference_outputs(program, data.scoring)
    fidelity = measure_fidelity(program, reference, data, data.scoring)
    assert fidelity.perplexity == pytest.approx(math.exp(loss), rel=1e-5)


def test_several_batches_are_one_text(bigram: Program) -> None:
    generator = torch.Generator().manual_seed(2)
    batches = [
        (torch.randint(VOCABULARY, (2, count), generator=generator), torch.ones(2, count, dtype=torch.long))
        for count in (9, 5)
    ]
    kept = Predictions(bigram, batches, main_outputs(bigram, batches))
    assert kept.row_count == 28
    likelihoods = [
        log_softmax(logits[row, place].tolist())[int(ids[row, place + 1])]
        for (ids, _), logits in zip(batches, main_outputs(bigram, batches), strict=True)
        for row in range(2)
        for place in range(ids.shape[1] - 1)
    ]
    expected = math.exp(-sum(likelihoods) / len(likelihoods))
    assert kept.compare(main_outputs(bigram, batches)).perplexity == pytest.approx(expected, rel=1e-5)


def test_only_models_of_tokens_with_logits_are_language_models(bigram: Program) -> None:
    assert is_language_model(bigram)
    assert not is_language_model(replace(bigram, role="encoder"))
    assert not is_language_model(replace(bigram, inputs=bigram.inputs[1:]))


def test_one_batch_of_logits_is_in_memory_at_a_time(bigram: Program) -> None:
    alive: list[weakref.ref[Tensor]] = []

    def outputs() -> Iterator[Tensor]:
        for _ in range(3):
            logits = torch.zeros(2, 5, VOCABULARY)
            alive.append(weakref.ref(logits))
            yield logits
            del logits
            assert sum(one() is not None for one in alive) <= 1

    batches = [(IDS, MASK)] * 3
    Predictions(bigram, batches, outputs()).compare(outputs())
    assert sum(one() is not None for one in alive) == 0


def test_a_pipeline_tells_what_it_cost(bigram: Program, tmp_path: Path) -> None:
    program = replace(captured_language_model(Bigram(92)), tokenizer=save_word_tokenizer(tmp_path))
    quantize = Registry(entry_points=False).passes()["quantize"](bits=8, activations="none", embeddings=False)
    context = PassContext(Target("cpu"), load_dataset(None, program))
    _, before, records = Pipeline([quantize], context).run(program)
    assert before.fidelity is not None
    assert before.fidelity.perplexity_ratio == 1.0
    after = records[0].evidence.fidelity
    assert after is not None
    assert after.perplexity is not None
    assert after.perplexity_ratio == pytest.approx(after.perplexity / (before.fidelity.perplexity or 0))
    assert 0 < (after.kl_divergence or 0) < 0.01
