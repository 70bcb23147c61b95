"""Hybrids of a window and a mixer: against loops in float64, on causal models and encoders, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import zoo
from grafted_attention import grafted
from torch import Tensor, nn

from compiler import options
from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.compile_model import compile_model
from compiler.errors import CompilerError
from compiler.mixers import Mixer, MixerOptions, MixerSizes
from compiler.mixers.hybrid import BidirectionalHybrid, CausalHybrid, PureMixer, with_one
from compiler.mixers.window import BidirectionalWindow, CausalWindow
from compiler.passes.attention.linear_attention import LinearAttention
from compiler.recipe import Recipe, parse_passes
from compiler.registry import Registry
from compiler.sites import Site, find_sites
from compiler.target import Target

SIZES = MixerSizes(hidden_width=12, head_count=4, kv_head_count=2, key_dim=4, value_dim=4)
TOKENS, SCALE = 13, 0.5
MIXERS = Registry(entry_points=False).mixers()
every_kind = pytest.mark.parametrize("kind", MIXERS)


def site_inputs(batch: int = 2) -> tuple[Tensor, ...]:
    """hidden, raw query, raw key, query, key, value in float64."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, dtype=torch.float64, generator=generator)

    return (random(TOKENS, 12), *(random(heads, TOKENS, 4) for heads in (4, 2, 4, 2, 2)))


def moved(module: nn.Module) -> nn.Module:
    """The module in float64 with parameters that have left their start."""
    generator = torch.Generator().manual_seed(4)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return module


def mixer_of(kind: str, sizes: MixerSizes = SIZES, **chosen: Any) -> Mixer:
    mixer = moved(MIXERS[kind](sizes, MixerOptions(**chosen)))
    assert isinstance(mixer, Mixer)
    return mixer


def far_by_prefixes(mixer: Mixer, inputs: tuple[Tensor, ...], token: int, first: int, stop: int) -> Tensor:
    """What `token` reads of the tokens from `first` up to `stop`, by mixing a sequence of these and nothing else."""
    hidden, query, key, _, _, value = inputs
    kept = slice(first, stop)
    written = mixer.write(hidden[:, kept], key[:, :, kept], value[:, :, kept])
    count = stop - first
    asking = torch.zeros(hidden.shape[0], count, hidden.shape[2], dtype=hidden.dtype)
    asking[:, -1] = hidden[:, token]
    asked = torch.zeros(*query.shape[:2], count, query.shape[3], dtype=query.dtype)
    asked[:, :, -1] = query[:, :, token]
    return mixer.read(asking, asked, written, torch.arange(count)[None])[:, :, -1]


@every_kind
@pytest.mark.parametrize(("window", "sinks"), [(3, 2), (4, 0)])
def test_a_causal_hybrid_shares_between_the_window_and_what_has_left_it(kind: str, window: int, sinks: int):
    inputs = site_inputs()
    hidden, _, _, query, key, value = inputs
    mixer = mixer_of(kind, SIZES.with_match)
    hybrid = moved(CausalHybrid(CausalWindow(window, sinks, SCALE), mixer, SIZES))
    assert isinstance(hybrid, CausalHybrid)
    output = hybrid(*inputs)
    for token in range(TOKENS):
        seen = [place for place in range(token + 1) if place < sinks or place > token - window]
        scores = SCALE * torch.einsum("bhd,bhsd->bhs", query[:, :, token], key.repeat_interleave(2, 1)[:, :, seen])
        near = torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), value.repeat_interleave(2, 1)[:, :, seen])
        stop = token - window + 1
        expected = near
        if stop > sinks:
            far, match = far_by_prefixes(mixer, (*inputs[:5], with_one(value)), token, sinks, stop).split([4, 1], -1)
            z = hybrid.share(hidden[:, token]) + hybrid.slope[:, 0] * match[..., 0]
            mass = (stop - sinks) * z.exp()
            share = mass / (mass + scores.exp().sum(-1))
            expected = near + share.unsqueeze(-1) * (far - near)
        torch.testing.assert_close(output[:, :, token], expected)


@every_kind
def test_without_a_window_the_mixer_stands_alone(kind: str):
    inputs = site_inputs()
    mixer = mixer_of(kind)
    output = PureMixer(mixer)(*inputs)
    for token in range(TOKENS):
        torch.testing.assert_close(output[:, :, token], far_by_prefixes(mixer, inputs, token, 0, token + 1))


@every_kind
@pytest.mark.parametrize(("window", "sinks"), [(3, 1), (0, 0)])
def test_an_encoder_reads_both_directions_and_no_padding(kind: str, window: int, sinks: int):
    inputs = site_inputs()
    hidden, raw_query, raw_key, query, key, value = inputs
    length = 10
    mask = (torch.arange(TOKENS) < length).expand(2, 1, 1, TOKENS)
    near = BidirectionalWindow(window, sinks, SCALE) if window else None
    hybrid = moved(BidirectionalHybrid(near, [MIXERS[kind](SIZES.with_match, MixerOptions()) for _ in range(2)], SIZES))
    assert isinstance(hybrid, BidirectionalHybrid)
    output = hybrid(*inputs, mask)
    kept = slice(0, length)
    short = hybrid(hidden[:, kept], *(one[:, :, kept] for one in (raw_query, raw_key, query, key, value)))
    torch.testing.assert_close(output[:, :, kept], short)
    for token in range(length):
        seen = [place for place in range(length) if place < sinks or abs(place - token) < window]
        parts, masses = [], []
        if window:
            keys, values = (one.repeat_interleave(2, 1)[:, :, seen] for one in (key, value))
            scores = SCALE * torch.einsum("bhd,bhsd->bhs", query[:, :, token], keys)
            parts.append(torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), values))
            masses.append(scores.exp().sum(-1))
        shares, slopes = hybrid.share(hidden[:, token]).chunk(2, -1), hybrid.slope[:, 0].chunk(2)
        wider = (*inputs[:5], with_one(value))
        stop = token - window + 1 if window else token + 1
        if stop > sinks:
            far, match = far_by_prefixes(hybrid.forwards, wider, token, sinks, stop).split([4, 1], -1)
            parts.append(far)
            masses.append((stop - sinks) * (shares[0] + slopes[0] * match[..., 0]).exp())
        start = max(token + max(window, 1), sinks)
        if start < length:
            turned = tuple(one[:, kept].flip(1) if one.dim() == 3 else one[:, :, kept].flip(2) for one in wider)
            place = length - 1 - token
            far, match = far_by_prefixes(hybrid.backwards, turned, place, 0, length - start).split([4, 1], -1)
            parts.append(far)
            masses.append((length - start) * (shares[1] + slopes[1] * match[..., 0]).exp())
        weights = torch.stack(masses, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        expected = (torch.stack(parts, -1) * weights.unsqueeze(-2)).sum(-1)
        torch.testing.assert_close(output[:, :, token], expected)


@every_kind
def test_every_parameter_learns(kind: str):
    inputs = [one.float() for one in site_inputs()]
    hybrid = moved(
        CausalHybrid(CausalWindow(3, 1, SCALE), MIXERS[kind](SIZES.with_match, MixerOptions()), SIZES)
    ).float()
    hybrid(*inputs).square().mean().backward()
    for name, parameter in hybrid.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@every_kind
def test_a_hybrid_starts_near_its_window(kind: str):
    """Trained layers start from the window's numbers: the far part has a small share, and no untrained size."""
    inputs = site_inputs()
    window = CausalWindow(3, 1, SCALE)
    near, _ = window(*inputs[3:], ())
    with torch.no_grad():
        start = CausalHybrid(window, MIXERS[kind](SIZES.with_match, MixerOptions()), SIZES).double()(*inputs)
    assert float((start - near).square().mean()) < 0.2 * float(near.square().mean())
    torch.testing.assert_close(start[:, :, :4], near[:, :, :4], msg="nothing has left the window yet")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "window"), [("llama", 4), ("vit", 4), ("gemma2", 0)])
def test_models_keep_their_shapes_and_dynamic_dims(name: str, window: int):
    program = zoo.canonical(name)
    after, result = grafted(LinearAttention(kind="gated-delta", window=window, sinks=1), program)
    sites = [one.name for one in find_sites(program, ("token-mixer",)) if isinstance(one, Site)]
    assert list(result.changed) == sites
    inputs = program.example_inputs
    larger = [torch.cat([one, one]) for one in inputs]
    for given in (inputs, larger):
        for found, expected in zip(after.run(*given), program.run(*given), strict=True):
            assert found.shape == expected.shape
            assert bool(found.isfinite().all())
    assert "regraft.linear_attention" in after.text()


@pytest.mark.slow
def test_the_softmax_it_replaces_is_gone():
    after, _ = grafted(LinearAttention(layers="0", window=4), zoo.canonical("llama"))
    assert [one.name for one in find_sites(after, ("attention",)) if isinstance(one, Site)] == ["layers.1.self_attn"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"kind": "gated-delte"}, "there is no mixer"),
        ({"kind": "gla", "steps": 2}, "kind=gla has no option 'steps'"),
        ({"kind": "delta-product", "steps": 1}, "two steps at least"),
        ({"kind": "s4d", "state_size": 0}, "one number at least"),
        ({"kind": "short-conv", "kernel_size": 0}, "one tap at least"),
    ],
)
def test_kinds_and_options_that_cannot_be(values: dict[str, Any], problem: str):
    with pytest.raises(CompilerError, match=problem) as caught:
        grafted(LinearAttention(**values), zoo.canonical("llama"))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "problem"), [("kind=gated-delte", "there is no mixer"), ("kind=gla:steps=2", "has no option 'steps'")]
)
def test_kinds_are_checked_before_a_model_is_captured(text: str, problem: str, tmp_path: Path):
    recipe = Recipe(str(tmp_path / "no-such-model"), parse_passes(f"linear-attention:{text}"))
    with pytest.raises(CompilerError, match=problem):
        compile_model(recipe, tmp_path / "out")


def test_windows_below_zero_cannot_be():
    with pytest.raises(CompilerError, match="neither is less than 0"):
        options.build(LinearAttention, {"window": "-1"})


@pytest.mark.parametrize("kind", ["gated-delta", "kda", "delta-product"])
def test_negative_eigenvalues_double_the_strength(kind: str):
    hidden = torch.randn(1, 5, 12)
    plain, doubled = (MIXERS[kind](SIZES, MixerOptions(negative_eigenvalues=one)) for one in (None, True))
    torch.testing.assert_close(doubled.strength(hidden), plain.strength(hidden), msg="both start from one strength")
    with torch.no_grad():
        for one in (plain, doubled):
            one.strengths.bias.fill_(9.0)
        strengths = [one.strength(hidden) for one in (plain, doubled)]
    assert float(strengths[0].max()) < 1.0 < 1.9 < float(strengths[1].min()) < 2.0


@pytest.mark.parametrize("kind", ["gated-delta", "gla", "kda", "delta-product", "lightning"])
def test_a_state_for_every_query_head(kind: str):
    own = mixer_of(kind, heads="own")
    hidden, query, key, _, _, value = site_inputs()
    written = own.write(hidden, key, value)
    assert written[0].shape[-1] % (4 * 4) == 0
    assert own.read(hidden, query, written, torch.arange(TOKENS)[None]).shape == (2, 4, TOKENS, 4)


def test_shares_are_those_of_a_softmax_over_all_tokens():
    """Were every score behind the window z and every value the same, hybrid and softmax would give the same."""
    z, scores = -0.7, torch.tensor([0.3, 1.1, -0.2])
    count = 40
    whole = torch.cat([scores, torch.full((count,), z)]).softmax(0)
    share = torch.sigmoid(z + math.log(count) - scores.logsumexp(0))
    torch.testing.assert_close(share, whole[3:].sum())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gated-delta", "s4d"])
def test_onnx_runtime_gives_what_an_encoder_gives_at_two_sizes(kind: str, tmp_path: Path):
    program = zoo.canonical("bert")
    after, _ = grafted(LinearAttention(kind=kind, window=3, sinks=1), program)
    OnnxRuntime().lower(after, Target.parse("cpu"), tmp_path)
    (model,) = tmp_path.glob("*.onnx")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    for size in ((2, 12), (3, 17)):
        inputs = zoo.entry("bert").inputs_at(*size)
        found = session.run(None, {name: one.numpy() for name, one in inputs.items()})
        for ours, expected in zip(found, after.run(*inputs.values()), strict=True):
            error = (torch.from_numpy(ours) - expected).abs().max()
            assert float(error) <= 1e-4 * float(expected.abs().max())
