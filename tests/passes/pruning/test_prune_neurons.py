"""prune-neurons: the graph before and after, masks, blocks of every form, chains of convolutions, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from pruning_checks import assert_pruned_is_masked, neurons, numbers, pruned
from rewrite_checks import captured, context_of
from structured_checks import canonical, grafted, products, refusals
from torch import Tensor, nn

from compiler.errors import CompilerError
from compiler.evidence.data import Dataset
from compiler.options import build
from compiler.passes.pruning.prune_neurons import PruneNeurons
from compiler.program import Program
from compiler.rewriting import Replacement
from compiler.sites import Site, find_sites

WIDTH, INNER = 16, 40


@pytest.mark.slow
@pytest.mark.parametrize("saliency", ["magnitude", "activations", "reconstruction"])
def test_a_quarter_of_the_neurons_is_gone_and_the_rest_is_the_masked_model(
    saliency: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = canonical("llama")
    graft = PruneNeurons(saliency=saliency)
    after, result = assert_pruned_is_masked(graft, program, neurons, monkeypatch)
    assert [shape for shape in products(after) if 36 in shape] == 2 * [(36, 32), (36, 32), (32, 36)]
    assert not [shape for shape in products(after) if 48 in shape]
    assert len(result.changed) == 2
    assert result.outcomes[0].note.startswith("neurons: 36 of 48")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "gpt2", "bert", "vit", "resnet"])
def test_models_of_many_kinds(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_pruned_is_masked(PruneNeurons(refit=False), canonical(model), neurons, monkeypatch, tmp_path)


class Gated(nn.Module):
    """Gate and up as halves of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 16] to the same."""
        gate, up = self.up(x).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up)


class Plain(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 16] to the same."""
        return x + self.down(nn.functional.gelu(self.up(x)))


def rows(count: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 5, generator=generator) @ torch.randn(5, WIDTH, generator=generator)


def program_of(module: nn.Module) -> Program:
    torch.manual_seed(0)
    return captured(module.eval(), x=rows())


def test_halves_of_one_layer_lose_the_same_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    after, _ = assert_pruned_is_masked(PruneNeurons(ratio=0.5), program_of(Gated()), neurons, monkeypatch)
    assert products(after) == [(40, 16), (16, 20)]


def test_fitting_anew_moves_outputs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    program = program_of(Plain())
    x = rows()
    errors = []
    for graft in (PruneNeurons(), PruneNeurons(refit=False), PruneNeurons(saliency="activations", refit=False)):
        after, _, _ = pruned(graft, program, monkeypatch)
        errors.append(float((after.run(x)[0] - program.run(x)[0]).square().sum()))
    assert errors[0] < 0.5 * min(errors[1:])


class Mobile(nn.Module):
    """A block of an inverted residual: a convolution in each channel between two that mix them, without a bias and with
    one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.norm = nn.Conv2d(4, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.each = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.narrow = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 4, 8, 8] to the same."""
        wide = nn.functional.relu6(self.norm(self.widen(x)))
        wide = nn.functional.max_pool2d(nn.functional.hardswish(self.each(wide)), 3, 1, 1)
        return x + self.narrow(wide)


def test_channels_go_with_what_each_has_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Mobile().eval()
    nn.init.normal_(module.norm.running_mean)
    program = captured(module, x=torch.randn(3, 4, 8, 8))
    after, result = assert_pruned_is_masked(PruneNeurons(ratio=0.5), program, neurons, monkeypatch, tmp_path)
    shapes = sorted(tuple(one.shape) for one in after.weights().values() if one.dim() == 4)
    assert shapes == [(4, 6, 3, 3), (6, 1, 3, 3), (6, 4, 1, 1)]
    assert len(result.changed) == 1


class Squeezed(nn.Module):
    """A block of MobileNetV3 as exporters write it out: hard-swish and the gate's hard-sigmoid in arithmetic."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.widen, self.each = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 6, 1), nn.Conv2d(6, 16, 1, bias=False)
        self.offset = nn.Parameter(torch.randn(16, 1, 1))
        self.narrow = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 4, 8, 8] to the same."""
        wide = self.widen(x)
        wide = self.each(wide * torch.clamp(wide + 3, 0, 6) / 6)
        means = nn.functional.adaptive_avg_pool2d(wide, 1) if self.pooled else wide.mean((2, 3), keepdim=True)
        gate = self.excite(nn.functional.relu(self.squeeze(means))) + self.offset
        return x + self.narrow(wide * torch.clamp(0.2 * gate + 0.5, 0, 1))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("refit", [False, True])
def test_channels_go_with_their_factors_in_a_gate(
    pooled: bool, refit: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    program = captured(Squeezed(pooled).eval(), x=torch.randn(6, 4, 8, 8))
    graft = PruneNeurons(ratio=0.5, refit=refit)
    after, result = assert_pruned_is_masked(graft, program, neurons, monkeypatch, tmp_path)
    shapes = sorted(tuple(one.shape) for one in after.weights().values() if one.dim() == 4)
    assert shapes == [(4, 8, 1, 1), (6, 8, 1, 1), (8, 1, 3, 3), (8, 4, 1, 1), (8, 6, 1, 1)]
    assert len(result.changed) == 1


@pytest.mark.parametrize(
    ("kind", "multiple", "ratios"),
    [("feed-forward", 32, [0.9, 0.75, 0.5]), ("convolution-chain", 8, [0.9, 0.75, 0.5, 0.25]), ("linear", 0, [])],
)
def test_what_a_budget_is_offered(kind: str, multiple: int, ratios: list[float]) -> None:
    offered = [one for one in PruneNeurons.candidates(kind) if isinstance(one, PruneNeurons)]
    assert [(one.ratio, one.multiple) for one in offered] == [(ratio, multiple) for ratio in ratios]


def test_a_budget_is_offered_nothing_for_single_layers() -> None:
    assert tuple(PruneNeurons.candidates("linear")) == ()


def test_ratios_and_multiples() -> None:
    choice = PruneNeurons(ratio=0.5, multiple=16).choice
    assert [choice.left(count) for count in (100, 40, 10)] == [64, 32, 10]
    assert PruneNeurons(ratio=0.01).choice.left(40) == 1
    assert "ratio=0.99 leaves all of its 40 neurons" in refusals(PruneNeurons(ratio=0.99), program_of(Plain())).values()


def test_without_data_the_norms_decide() -> None:
    program = program_of(Plain())
    context = dataclasses.replace(context_of(program), data=Dataset("none", (), ()))
    (site,) = find_sites(program, ("feed-forward",))
    assert isinstance(site, Site)
    found = PruneNeurons().propose(site, program, context)
    assert isinstance(found, Replacement)
    assert found.note == "neurons: 30 of 40, chosen by magnitude for want of calibration data"
    up, down = (program.weight(f"{name}.weight").detach() for name in ("up", "down"))
    scores = [float(up[j].norm() * down[:, j].norm()) for j in range(INNER)]
    best = sorted(sorted(range(INNER), key=scores.__getitem__)[10:])
    assert torch.equal(found.module.get_parameter("up.weight"), up[best])
    assert torch.equal(found.module.get_parameter("down.weight"), down[:, best])


def test_the_budget_gives_back_half_and_then_all() -> None:
    program = program_of(Plain())
    (site,) = find_sites(program, ("feed-forward",))
    assert isinstance(site, Site)
    context = dataclasses.replace(context_of(program), max_drop=0.1)
    rung = PruneNeurons(ratio=0.5).propose(site, program, context)
    widths = []
    while isinstance(rung, Replacement):
        widths.append(rung.module.get_parameter("up.weight").shape[0])
        if rung.gentler is None:
            break
        rung = rung.gentler()
    assert widths == [20, 30, 35, 38, 39]


class Leaky(nn.Module):
    """A hidden value that goes through an operator without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 4, 8, 8] to fewer."""
        return self.down(torch.relu(self.grouped(self.up(x))))


def test_what_is_refused() -> None:
    torch.manual_seed(0)
    program = captured(Leaky().eval(), x=torch.randn(3, 4, 8, 8))
    assert list(refusals(PruneNeurons(), program).values()) == ["a convolution in it has groups of channels"]
    program = program_of(Plain())
    weight = program.weight("down.weight").detach().clone()
    weight[0, 0] = torch.nan
    program.set_weight("down.weight", weight)
    (reason,) = refusals(PruneNeurons(), program).values()
    assert reason == "down: its weight down.weight holds values that are not finite"
    for options, message in (({"ratio": "1.5"}, "ratio=1.5 is not"), ({"multiple": "0"}, "multiple=0 is less")):
        with pytest.raises(CompilerError, match=message):
            build(PruneNeurons, options)


@pytest.mark.slow
def test_experts_are_refused() -> None:
    assert set(refusals(PruneNeurons(), canonical("mixtral")).values()) == {"its layers are those of experts"}


def test_a_second_run_takes_a_quarter_of_what_is_left() -> None:
    once, _ = grafted(PruneNeurons(), program_of(Plain()))
    twice, _ = grafted(PruneNeurons(), once)
    assert products(twice) == [(22, 16), (16, 22)]
    assert numbers(twice) < numbers(once)
