"""Windows in the place of attention: against plain loops, on causal models and encoders, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import zoo
from grafted_attention import grafted, token_mixers
from rewrite_checks import context_of
from torch import Tensor

from compiler import options
from compiler.errors import CompilerError
from compiler.mixers.window import BidirectionalWindow, CausalWindow
from compiler.passes.attention.sliding_window import SlidingWindow
from compiler.rewriting import Replacement
from compiler.sites import find_sites


def by_loops(q: Tensor, k: Tensor, v: Tensor, scale: float, sees: Any) -> tuple[Tensor, Tensor]:
    """Attention of one head, token by token, to the places that `sees(token, place)` lets through."""
    outputs, sums = [], []
    for token in range(len(q)):
        places = [place for place in range(len(k)) if sees(token, place)]
        weights = [math.exp(scale * float(q[token] @ k[place])) for place in places]
        outputs.append(sum(w * v[place] for w, place in zip(weights, places, strict=True)) / sum(weights))
        sums.append(math.log(sum(weights)))
    return torch.stack(outputs), torch.tensor(sums, dtype=torch.float64)


@pytest.mark.parametrize(("window", "sinks"), [(3, 2), (1, 0), (4, 0), (20, 1)])
@pytest.mark.parametrize("causal", [True, False])
def test_a_window_is_what_loops_over_it_give(window: int, sinks: int, causal: bool):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 11, 4, dtype=torch.float64, generator=generator) for heads in (4, 2, 2))
    form = (CausalWindow if causal else BidirectionalWindow)(window, sinks, 0.3)
    output, sums = form(q, k, v, ())

    def sees(token: int, place: int) -> bool:
        if causal and place > token:
            return False
        return place < sinks or abs(token - place) < window

    for head in range(4):
        expected, logs = by_loops(q[0, head], k[0, head // 2], v[0, head // 2], 0.3, sees)
        torch.testing.assert_close(output[0, head], expected)
        torch.testing.assert_close(sums[0, head], logs)


def test_masks_of_an_encoder_keep_padding_out():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 1, 6, 4, generator=generator) for _ in range(3))
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[1, ..., 4:] = False
    added = torch.zeros(2, 1, 1, 6).masked_fill(~mask, torch.finfo(torch.float32).min)
    window = BidirectionalWindow(3, 0, 0.5)
    short, _ = window(q[1:, :, :4], k[1:, :, :4], v[1:, :, :4], ())
    for form in (mask, added):
        output, sums = window(q, k, v, (form,))
        torch.testing.assert_close(output[1:, :, :4], short)
        assert bool(output.isfinite().all() & sums.isfinite().all()), "rows of padding are numbers too"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_window_as_long_as_the_text_changes_nothing(name: str):
    program = zoo.canonical(name)
    after, result = grafted(SlidingWindow(window=12, sinks=0), program)
    self_attention = token_mixers(program)
    assert result.changed == tuple(site.name for site in self_attention)
    inputs = program.example_inputs
    kept = inputs[1].bool()  # the last tokens are padding
    found, expected = after.run(*inputs)[0][kept], program.run(*inputs)[0][kept]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
    shorter, _ = grafted(SlidingWindow(window=3, sinks=0), program)
    assert float((shorter.run(*inputs)[0][kept] - expected).abs().max()) > 1e-4


@pytest.mark.slow
def test_only_the_layers_that_are_asked_for():
    program = zoo.canonical("llama")
    after, result = grafted(SlidingWindow(window=4, layers="1"), program)
    assert result.changed == ("layers.1.self_attn",)
    assert [outcome.state for outcome in result.outcomes] == ["grafted", "refused"]
    assert [site.name for site in find_sites(after, ("attention",))] == ["layers.0.self_attn"]
    assert "sliding_window_attention" in after.text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("gemma2", {}, "its scores are capped"),
        ("bloom", {}, "a bias is added to its scores"),
        ("mistral", {"window": 8}, "its window of 8 tokens is no longer than 8"),
        ("vit", {"window": 17}, "it reads 17 tokens, no more than the window"),
    ],
)
def test_what_is_refused(name: str, values: dict[str, int], reason: str):
    _, result = grafted(SlidingWindow(**values), zoo.canonical(name))
    assert any(reason in refusal.reason for refusal in result.refusals), result.refusals


@pytest.mark.slow
def test_the_budget_softens_to_a_longer_window():
    program = zoo.canonical("llama")
    site = token_mixers(program)[0]
    first = SlidingWindow(window=3).propose(site, program, context_of(program))
    assert isinstance(first, Replacement)
    assert first.gentler is not None
    gentler = first.gentler()
    assert isinstance(gentler, Replacement)
    assert (gentler.note, gentler.gentler) == ("window of 12 and 4 sinks", None)


@pytest.mark.parametrize(
    ("values", "problem"),
    [({"window": "0"}, "sees at least itself"), ({"sinks": "-1"}, "less than none"), ({"layers": "auto-2"}, "a share")],
)
def test_options_that_cannot_be(values: dict[str, str], problem: str):
    with pytest.raises(CompilerError, match=problem):
        options.build(SlidingWindow, values)
