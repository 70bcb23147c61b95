"""Sites alone: cut out they give what they give in their model, and what was measured is kept by shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from rewrite_checks import context_of
from structured_checks import WIDTH, canonical, two_layers
from torch import nn

from compiler.backends.eager import Eager
from compiler.backends.onnx_runtime import OnnxRuntime
from compiler.evidence import site_speed
from compiler.evidence.site_program import site_program, token_sizes
from compiler.evidence.site_speed import SpeedMeter
from compiler.evidence.turns import alternating_seconds
from compiler.lanes import Lane
from compiler.passes.linear.low_rank import LowRank
from compiler.program import Program
from compiler.rewriting import Replacement
from compiler.sites import Site, find_sites
from compiler.target import Target

KINDS = ("linear", "feed-forward", "attention", "convolution", "embedding", "norm")


def sites_of(program: Program, *kinds: str) -> list[Site]:
    return [one for one in find_sites(program, kinds) if isinstance(one, Site)]


@pytest.mark.parametrize("model", ["llama", "t5", "resnet"])
def test_a_site_alone_gives_what_it_gives_in_its_model(model: str) -> None:
    program = canonical(model)
    examples = dict(zip((spec.name for spec in program.inputs), program.example_inputs, strict=True))
    sizes = {
        dim.name: size
        for spec in program.inputs
        for dim, size in zip(spec.shape, examples[spec.name].shape, strict=True)
        if not isinstance(dim, int)
    }
    lane = Lane(program, program.example_inputs)
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op != "output":
                lane.pass_node(node, ())
    for kind in KINDS:
        for site in sites_of(program, kind)[:2]:
            cut = site_program(program, site, sizes)
            assert cut.activation_count == len(cut.shapes), "it reads nothing but its inputs"
            given = [lane.env[node] for node in site.inputs]
            assert [one.shape for one in cut.shapes] == [tuple(one.shape) for one in given]
            with torch.no_grad():
                torch.testing.assert_close(cut.graph(*given), lane.env[site.output], rtol=0, atol=1e-6)


def test_so_many_tokens_are_one_sample_of_a_language_model_and_samples_of_another() -> None:
    assert token_sizes(canonical("llama"), 8) == {"batch": 1, "sequence": 8}
    assert token_sizes(two_layers(), 8) == {"batch": 8}


def test_speeds_are_measured_once_for_a_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    program = canonical("llama")
    gates = [site for site in sites_of(program, "linear") if site.name.endswith(("gate_proj", "up_proj"))]
    assert len(gates) == 4
    meter = SpeedMeter(OnnxRuntime(), Target.parse("cpu"))
    measured: list[str] = []

    def counting(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        measured.extend(calls)
        return alternating_seconds(calls, rounds=1)

    monkeypatch.setattr(site_speed, "alternating_seconds", counting)
    for site in gates:
        proposal = LowRank().propose(site, program, context_of(program))
        assert isinstance(proposal, Replacement)
        speeds = meter.compare(program, site, proposal.module, (1, 3))
        assert not isinstance(speeds, str)
        assert [one.tokens for one in speeds] == [1, 3]
        assert all(one.original_seconds > 0 and one.stand_in_seconds > 0 and one.gain > 0 for one in speeds)
    assert measured == ["original", "stand_in"] * 2
    meter.compare(program, gates[0], nn.Linear(32, 64), (1,))
    assert len(measured) == 6, "another stand-in is another measurement"


def test_what_a_backend_cannot_lower_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    program = two_layers()
    (site, _) = sites_of(program, "linear")
    told = SpeedMeter(OnnxRuntime(), Target.parse("cuda:sm_90")).compare(program, site, nn.Linear(WIDTH, 36), (1,))
    assert isinstance(told, str)
    assert "not cuda" in told
    eager = SpeedMeter(Eager(), Target.parse("cpu")).compare(program, site, nn.Linear(WIDTH, 36), (1,))
    assert not isinstance(eager, str)


def test_sides_take_turns() -> None:
    order: list[str] = []
    seconds = alternating_seconds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert {name: len(own) for name, own in seconds.items()} == {"a": 3, "b": 3}
    turns = [name for index, name in enumerate(order) if index == 0 or order[index - 1] != name]
    assert turns == ["a", "b"] * 4
