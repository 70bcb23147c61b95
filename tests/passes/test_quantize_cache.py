"""quantize-cache: what the Program keeps between calls becomes int8, site by site, and the budget gives sites back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from decoding_checks import Decoder, passed, run_onnx, run_program
from rewrite_checks import context_of
from torch import Tensor

from compiler import options
from compiler.errors import CompilerError
from compiler.evidence.data import Dataset
from compiler.evidence.fidelity import compare_with, reference_outputs
from compiler.grafting import apply_graft
from compiler.passes.quantize_cache import QuantizeCache
from compiler.program import Program
from compiler.quantization.cached_attention import cache_reaches
from compiler.rewriting import PassResult, Replacement
from compiler.sites import Site, find_sites

LAYERS = ("layers.0.self_attn", "layers.1.self_attn")


@pytest.fixture(scope="module")
def captured() -> Program:
    return zoo.captured("qwen3")


@pytest.fixture(scope="module")
def program(captured: Program) -> Program:
    """Two layers, two kv heads of 16, rotated inside of the attention."""
    return passed(captured, "make-incremental")


@pytest.fixture(scope="module")
def data(captured: Program) -> Dataset:
    """Two rows of 12 tokens, of which the last three of the second are padding."""
    return replace(context_of(captured).data, mask_index=1)


def quantized(program: Program, data: Dataset, **settings: Any) -> tuple[Program, PassResult]:
    context = replace(context_of(program), data=data)
    return apply_graft(QuantizeCache(**settings), program, (), context)


def cache_sites(program: Program) -> list[Site]:
    return [site for site in find_sites(program, ("cache",)) if isinstance(site, Site)]


def state_types(program: Program) -> dict[str, str]:
    """Of every state's input; its output and both examples must agree."""
    specs = {spec.name: spec for spec in (*program.inputs, *program.outputs)}
    for state in program.states:
        assert specs[state.past].dtype == specs[state.present].dtype
    for spec, example in zip(program.inputs, program.example_inputs, strict=True):
        assert example.dtype == getattr(torch, spec.dtype)
    return {state.past: specs[state.past].dtype for state in program.states}


def test_buffers_are_int8_and_the_attention_has_scales(program: Program, data: Dataset):
    after, result = quantized(program, data)
    assert result.changed == LAYERS
    assert set(state_types(after).values()) == {"int8"}
    assert set(state_types(program).values()) == {"float32"}, "the Program before is left alone"
    for before, site in zip(cache_sites(program), cache_sites(after), strict=True):
        assert not site.bindings["is_float"]
        assert (site.bindings["kv_head_count"], site.bindings["rotary_dim"]) == (2, 16)
        added = set(site.bindings["arguments"]) - set(before.bindings["arguments"])
        assert added == {"k_scale", "v_scale"}
        assert site.bindings["settings"] == {
            name: one for name, one in before.bindings["settings"].items() if name not in added
        }
        assert [after.weight(node).shape for node in site.inputs[-2:]] == [(32,), (32,)]


def test_codes_stand_for_the_floats_to_half_a_scale(program: Program, data: Dataset):
    """In the first layer, whose input is not quantized."""
    after, _ = quantized(program, data)
    (batch,) = data.calibration
    (floats, codes), site = (one.run(*one.complete(batch))[1:3] for one in (program, after)), cache_sites(after)[0]
    scales = [after.weight(node).view(2, 1, 16) for node in site.inputs[-2:]]
    real = batch[1].bool()[:, None, :, None]
    for held, wanted, scale in zip(codes, floats, scales, strict=True):
        error = (held.float() * scale - wanted).abs() / scale
        assert held.dtype == torch.int8
        assert float((error * real).max()) <= 0.5 + 1e-3
        assert int((held.abs() * real).max()) >= 90, "the codes are made use of"


def test_the_reach_of_rotated_keys_holds_at_any_position(program: Program, data: Dataset):
    """Each row again as if it stood elsewhere: no key goes beyond what was found where it stood."""
    (site, _), (batch,) = cache_sites(program), data.calibration
    reach = cache_reaches(program, cache_sites(program), data)[site.output]
    tokens = batch[0][:1]
    for start in (1, 5, 17, 40):
        decoder = Decoder(program, run_program(program), 1, 60)
        decoder.lengths += start
        decoder.read(tokens)
        keys = decoder.states["past_key_values.0.key"][0, :, start : start + 12]
        assert bool((keys.abs() <= reach.keys.view(2, 1, 16) + 1e-5).all())


def test_padding_sets_no_scale(program: Program, data: Dataset):
    (batch,) = data.calibration
    rows = tuple((batch[0][row : row + 1, :count], batch[1][row : row + 1, :count]) for row, count in ((0, 12), (1, 9)))
    assert int(batch[1][1].sum()) == 9
    alone = replace(data, calibration=rows)
    found, expected = (list(cache_reaches(program, cache_sites(program), one).values()) for one in (data, alone))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close((ours.keys, ours.values), (theirs.keys, theirs.values))


def test_one_scale_for_all_channels(program: Program, data: Dataset):
    after, _ = quantized(program, data, scales="tensor", headroom=1.5)
    by_channel, _ = quantized(program, data)
    for one, other in zip(cache_sites(after), cache_sites(by_channel), strict=True):
        for scale, scales in zip(one.inputs[-2:], other.inputs[-2:], strict=True):
            assert after.weight(scale).shape == (1,)
            torch.testing.assert_close(after.weight(scale)[0], 1.5 * by_channel.weight(scales).max())


def test_a_scale_for_all_softens_to_a_scale_a_channel(program: Program, data: Dataset):
    site, context = cache_sites(program)[0], replace(context_of(program), data=data)
    first = QuantizeCache(scales="tensor").propose(site, program, context)
    assert isinstance(first, Replacement)
    assert first.gentler is not None
    gentler = first.gentler()
    assert isinstance(gentler, Replacement)
    assert [len(one.module.k_scale) for one in (first, gentler)] == [1, 32]
    assert gentler.gentler is None
    assert first.states == gentler.states == dict.fromkeys(
        ("past_key_values.0.key", "past_key_values.0.value"), torch.int8
    )  # fmt: skip


def test_the_budget_gives_sites_back_with_their_floats(program: Program, data: Dataset):
    def states_within(max_drop: float) -> tuple[dict[str, str], PassResult]:
        context = replace(context_of(program), data=data, max_drop=max_drop)
        reference = reference_outputs(program, data.scoring)
        after, result = apply_graft(QuantizeCache(headroom=0.05), program, reference, context)
        after.run(*after.complete(data.scoring[0]))
        return state_types(after), result

    none, result = states_within(0.0)
    assert set(none.values()) == {"float32"}
    some, result = states_within(1.001 * min(one.drop or 0.0 for one in result.outcomes))
    states = {one.site: one.state for one in result.outcomes}
    assert sorted(states.values()) == ["grafted", "returned"], "the budget has room for one of the two"
    held = LAYERS.index(*result.changed)
    assert states[LAYERS[held]] == "grafted"
    assert some == {name: "int8" if f".{held}." in name else "float32" for name in none}


def test_named_layers_alone_are_int8(program: Program, data: Dataset):
    after, result = quantized(program, data, layers="not-0")
    assert result.changed == LAYERS[1:]
    assert state_types(after) == {
        name: "int8" if ".1." in name else "float32" for name in (spec.past for spec in program.states)
    }
    after.run(*after.complete(data.scoring[0]))


def test_layers_that_cost_least_are_int8(
    program: Program, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the divergence of each alone, against one site at a time by the pass itself."""
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    _, result = quantized(program, data, layers="auto-0.5", rank="kl", headroom=0.05)
    assert result.ranking is not None
    reference = reference_outputs(program, data.ranking)
    for index, cost in enumerate(result.ranking.costs):
        alone, _ = quantized(program, data, layers=str(index), headroom=0.05)
        found = [alone.run(*alone.complete(batch))[0] for batch in data.ranking]
        fidelity = compare_with(reference, found, data, data.ranking, program.role)
        assert cost.error == pytest.approx(fidelity.kl_divergence, rel=1e-5)
    cheapest = min(result.ranking.costs, key=lambda cost: cost.error)
    assert result.changed == (cheapest.site,)


def test_a_second_run_changes_nothing(program: Program, data: Dataset):
    after, _ = quantized(program, data)
    again, result = quantized(after, data)
    assert again is after
    assert [refusal.reason for refusal in result.refusals] == ["its buffers are int8 already"] * 2


def test_without_calibration_data_nothing_is_known(program: Program, data: Dataset):
    after, result = quantized(program, replace(data, calibration=()))
    assert after is program
    assert all("no calibration data" in refusal.reason for refusal in result.refusals)
    assert [refusal.name for refusal in result.refusals] == list(LAYERS)


def test_a_program_without_states_is_refused_with_a_hint(captured: Program):
    with pytest.raises(CompilerError, match="keeps no keys and values") as caught:
        apply_graft(QuantizeCache(), captured.copy(), (), context_of(captured))
    assert "make-incremental" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "problem"),
    [({"bits": "4"}, "only 8 pay"), ({"headroom": "0"}, "leaves no codes"), ({"scales": "token"}, "token")],
)
def test_options_that_cannot_be(values: dict[str, str], problem: str):
    with pytest.raises(CompilerError, match=problem):
        options.build(QuantizeCache, values)


@pytest.mark.parametrize("scales", ["channel", "tensor"])
def test_onnx_runtime_gives_what_the_program_gives(program: Program, data: Dataset, tmp_path: Path, scales: str):
    after, _ = quantized(program, data, scales=scales)
    tokens = torch.randint(4, 99, (1, 16), generator=torch.Generator().manual_seed(5))

    def read(run: Any) -> tuple[Tensor, dict[str, Tensor]]:
        decoder = Decoder(after, run, 1, 20)
        logits = [decoder.read(piece) for piece in tokens.split((7, 4, 1, 1, 1, 1, 1), dim=1)]
        return torch.cat(logits, 1), decoder.states

    (ours, held), (theirs, theirs_held) = read(run_program(after)), read(run_onnx(after, tmp_path))
    assert {state.dtype for state in theirs_held.values()} == {torch.int8}
    for name, codes in held.items():
        assert int((codes.int() - theirs_held[name].int()).abs().max()) <= 1
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-3 * float(ours.abs().max()))
