"""structured-feed-forward: blocks of every form, layers fitted in turn, what is refused, runtimes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rewrite_checks import captured, context_of
from structured_checks import assert_runs_in_onnx_runtime, canonical, flat_and_steep, grafted, products, refusals
from torch import Tensor, nn

from compiler.errors import CompilerError
from compiler.options import build
from compiler.passes.feed_forward.structured_feed_forward import StructuredFeedForward
from compiler.program import Program

WIDTH, INNER = 16, 40


class Gated(nn.Module):
    """Three layers, or two with gate and up as halves of one."""

    def __init__(self, halves: bool) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * INNER if halves else INNER)
        self.gate = None if halves else nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 16] to the same."""
        if self.gate is None:
            up, gate = self.up(x).chunk(2, -1)
        else:
            up, gate = self.up(x), self.gate(x)
        return x + self.down(nn.functional.silu(gate) * up)


class Plain(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 16] to the same."""
        return x + self.down(nn.functional.gelu(self.up(x)))


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(200, 5, generator=generator) @ torch.randn(5, WIDTH, generator=generator)


def program_of(module: nn.Module) -> Program:
    torch.manual_seed(0)
    return captured(module.eval(), x=rows())


def test_the_graph_before_and_after() -> None:
    program = program_of(Gated(halves=False))
    after, result = grafted(StructuredFeedForward(), program)
    assert products(program) == [(40, 16), (40, 16), (16, 40)]
    assert products(after) == [(5, 16), (40, 5), (5, 16), (40, 5), (5, 40), (16, 5)]
    assert len(result.changed) == 1
    roles = [note.partition(":")[0] for note in result.outcomes[0].note.split("; ")]
    assert sorted(roles) == ["down", "gate", "up"]


@pytest.mark.parametrize("form", ["gated", "halves", "plain"])
def test_at_full_rank_of_its_inputs_every_form_keeps_its_numbers(form: str) -> None:
    """Five directions go in: rank 5 loses nothing of gate and up, and `down` alone is off."""
    torch.manual_seed(0)
    module = Plain() if form == "plain" else Gated(halves=form == "halves")
    program = program_of(module)
    after, result = grafted(StructuredFeedForward(ratio=0.62), program)
    assert result.changed
    x = rows()
    weights = after.weights()
    (name,) = {one.rpartition(".down.")[0] for one in weights if ".down." in one}
    with torch.no_grad():
        down = weights[f"{name}.down.second_factor.0"] @ weights[f"{name}.down.first_factor.0"]
        if isinstance(module, Plain):
            hidden = nn.functional.gelu(module.up(x))
        elif module.gate is None:
            up, gate = module.up(x).chunk(2, -1)
            hidden = nn.functional.silu(gate) * up
        else:
            hidden = nn.functional.silu(module.gate(x)) * module.up(x)
        expected = x + hidden @ down.T + module.down.bias
        torch.testing.assert_close(after.run(x)[0], expected, rtol=0, atol=3e-2 * float(hidden.abs().max()))


@pytest.mark.parametrize("kind", ["low-rank", "monarch", "block-dense", "block-shuffle"])
def test_kinds_have_the_structures_of_their_passes(kind: str) -> None:
    program = program_of(Plain())
    after, result = grafted(StructuredFeedForward(kind=kind, blocks=2), program)
    assert len(result.changed) == 1
    expected = {
        "low-rank": [(5, 16), (40, 5), (5, 40), (16, 5)],
        "monarch": [(4, 8)] * 2 + [(20, 4)] * 2 + [(4, 20)] * 2 + [(8, 4)] * 2,
        "block-dense": [(3, 8)] * 2 + [(40, 6)] + [(4, 20)] * 2 + [(16, 8)],
        "block-shuffle": [(8, 8)] * 2 + [(20, 8)] * 2 + [(8, 20)] * 2 + [(8, 8)] * 2,
    }
    assert products(after) == expected[kind]


def test_a_layer_that_an_allocation_keeps_whole_stays_in_its_block() -> None:
    program = program_of(Plain())
    flat_and_steep(program, "up.weight", "down.weight")
    graft = StructuredFeedForward(ratio=0.75, allocation="energy", method="plain")
    after, result = grafted(graft, program)
    assert products(after)[0] == (INNER, WIDTH)
    assert sum(rows * columns for rows, columns in products(after)) <= 0.75 * 2 * INNER * WIDTH
    assert result.outcomes[0].note.startswith("up: dense, ")
    (name,) = [one for one in after.weights() if one.endswith("up.weight")]
    torch.testing.assert_close(after.weight(name), program.weight("up.weight"))


class Odd(nn.Module):
    """An activation that is none of the known ones."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 16] to the same."""
        hidden = self.up(x)
        return self.down(torch.tanh(hidden) * torch.sigmoid(hidden) + hidden)


def test_what_is_refused() -> None:
    assert list(refusals(StructuredFeedForward(), program_of(Odd())).values()) == [
        "its activation is none that is known"
    ]
    few = refusals(StructuredFeedForward(ratio=0.03), program_of(Plain()))
    assert next(iter(few.values())).endswith("too few numbers for blocks of rank 1 in a weight of 40 x 16")
    program = program_of(Plain())
    weight = program.weight("down.weight").detach().clone()
    weight[0, 0] = torch.nan
    program.set_weight("down.weight", weight)
    assert list(refusals(StructuredFeedForward(), program).values()) == [
        "down: its weight down.weight holds values that are not finite"
    ]
    after, _ = grafted(StructuredFeedForward(), program_of(Plain()))
    assert grafted(StructuredFeedForward(), after)[1].changed == ()
    with pytest.raises(CompilerError, match="allocation=energy: block-shuffle has as many numbers"):
        build(StructuredFeedForward, {"allocation": "energy", "kind": "block-shuffle"})
    with pytest.raises(CompilerError, match="blocks=0 is not from 2 to 16"):
        build(StructuredFeedForward, {"blocks": "0"})


@pytest.mark.slow
def test_experts_are_refused() -> None:
    program = canonical("mixtral")
    found = set(refusals(StructuredFeedForward(), program).values())
    assert found == {"its layers are those of experts"}
    assert context_of(program).data.calibration


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kind"),
    [("llama", "monarch"), ("bert", "low-rank"), ("vit", "block-dense"), ("llama", "pivoted-low-rank")],
)
def test_models_in_onnx_runtime(model: str, kind: str, tmp_path: Path) -> None:
    graft = StructuredFeedForward(kind=kind, blocks=2)
    assert len(assert_runs_in_onnx_runtime(graft, model, tmp_path).changed) == 2
