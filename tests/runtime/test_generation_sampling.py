"""Sampling against the logits processors of transformers, and seeds, and values that cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from compiler.errors import CompilerError
from compiler.runtime.generation.sampling import Sampler, SamplingOptions, distribution, repetition_penalized

SIZES = (50, 3000)


def logits(seed: int, size: int) -> np.ndarray:
    """Random logits."""
    return np.random.default_rng(seed).normal(scale=3, size=size).astype(np.float32)


def theirs(scores: np.ndarray, seen: list[int], *processors: LogitsProcessor) -> np.ndarray:
    """The probabilities that transformers draws from."""
    found = torch.tensor(scores)[None]
    for processor in processors:
        found = processor(torch.tensor([seen]), found)
    return found.double().softmax(-1)[0].numpy()


CASES: dict[str, tuple[dict[str, Any], list[LogitsProcessor]]] = {
    "temperature": ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
    "top-k": ({"temperature": 1.0, "top_k": 7}, [TopKLogitsWarper(7)]),
    "top-p": ({"temperature": 1.0, "top_p": 0.6}, [TopPLogitsWarper(0.6)]),
    "flat top-p": ({"temperature": 30.0, "top_p": 0.95}, [TemperatureLogitsWarper(30.0), TopPLogitsWarper(0.95)]),
    "min-p": ({"temperature": 1.0, "min_p": 0.1}, [MinPLogitsWarper(0.1)]),
    "all": (
        {"temperature": 1.3, "top_k": 40, "top_p": 0.8, "min_p": 0.05},
        [TemperatureLogitsWarper(1.3), TopKLogitsWarper(40), TopPLogitsWarper(0.8), MinPLogitsWarper(0.05)],
    ),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_the_distribution_is_that_of_transformers(name: str, size: int) -> None:
    options, processors = CASES[name]
    for seed in range(5):
        scores = logits(seed, size)
        found = np.zeros(size)
        tokens, probabilities = distribution(scores, SamplingOptions(**options))
        found[tokens] = probabilities
        np.testing.assert_allclose(found, theirs(scores, [0], *processors), atol=1e-6)


def test_top_k_keeps_ties_as_transformers_does() -> None:
    scores = np.array([1, 3, 2, 2, 0], np.float32)
    tokens, _ = distribution(scores, SamplingOptions(temperature=1.0, top_k=2))
    assert set(tokens.tolist()) == set(np.flatnonzero(theirs(scores, [0], TopKLogitsWarper(2)))) == {1, 2, 3}


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    scores, seen = logits(0, 50), [3, 4, 4, 17, 49]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([seen]), torch.tensor(scores)[None])[0].numpy()
    np.testing.assert_allclose(repetition_penalized(scores, seen, 1.3), expected, rtol=1e-6)


def test_the_penalties_count_what_was_chosen() -> None:
    scores = np.array([1.0, 0.9, 0.5], np.float32)
    sampler = Sampler(SamplingOptions(repetition_penalty=1.5), prompt=[])
    assert [sampler.next(scores) for _ in range(4)] == [0, 1, 0, 0]
    frequency = Sampler(SamplingOptions(frequency_penalty=0.3), prompt=[0, 0, 0])
    assert [frequency.next(scores) for _ in range(5)] == [0, 1, 0, 1, 2]
    presence = Sampler(SamplingOptions(presence_penalty=2.0), prompt=[])
    assert [presence.next(scores) for _ in range(4)] == [0, 1, 2, 0]
    np.testing.assert_array_equal(scores, np.array([1.0, 0.9, 0.5], np.float32))


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    scores = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=0), prompt=[])
    drawn = np.bincount([sampler.next(scores) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, [0.5, 0.3, 0.15, 0.05], atol=0.03)


def test_a_seed_draws_the_same_again_and_another_seed_does_not() -> None:
    scores = logits(1, 1000)

    def drawn(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=2.0, seed=seed), prompt=[])
        return [sampler.next(scores) for _ in range(20)]

    assert drawn(7) == drawn(7)
    assert len({tuple(drawn(seed)) for seed in (7, 8, None, None)}) == 4


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    assert Sampler(SamplingOptions(top_k=1, top_p=0.1), []).next(np.array([0.0, 2.0, 2.0], np.float32)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0},
        {"top_p": 1.1}, {"min_p": -0.1}, {"repetition_penalty": 0.0}, {"frequency_penalty": 3.0},
        {"presence_penalty": float("inf")}, {"stop": ("",)}, {"seed": -1}, {"seed": 2**64},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(CompilerError, match=name) as refusal:
        SamplingOptions(**wrong)
    assert repr(value) in refusal.value.problem
