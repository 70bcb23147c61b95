"""prune-layers: influence against loops, models without the layers, which layers go, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import zoo
from decoding_checks import Decoder, passed, run_program
from lowered_program import LoweredProgram
from rewrite_checks import assert_near, captured, context_of, other_size
from structured_checks import grafted, refusals
from torch import Tensor, nn

from compiler.errors import CompilerError
from compiler.evidence.data import Dataset
from compiler.frontends.torch_export import capture
from compiler.options import build
from compiler.passes.pruning.prune_layers import PruneLayers
from compiler.program import Program
from compiler.pruning.influence import block_influence
from compiler.sites import Site, find_sites

WIDTH = 8


class Block(nn.Module):
    """Two sums in one numbered module."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 3, 8] to the same."""
        x = x + self.size * self.first(self.norm(x))
        return x + self.size * torch.tanh(self.second(x))


class Stack(nn.Module):
    """Blocks that change more and less of what goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(size) for size in (1.0, 0.1, 2.0, 0.3))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 3, 8] to [batch, 3, 4]."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def stack(*left: int) -> tuple[Stack, Program]:
    """The model, or what is left of it, and its Program."""
    torch.manual_seed(0)
    module = Stack().eval()
    if left:
        module.blocks = nn.ModuleList(module.blocks[index] for index in left)
    return module, captured(module, x=rows())


def rows() -> Tensor:
    return torch.randn(5, 3, WIDTH, generator=torch.Generator().manual_seed(2))


def sites_of(program: Program) -> list[Site]:
    return [one for one in find_sites(program, ("residual-layer",)) if isinstance(one, Site)]


def test_layers_are_the_numbered_modules() -> None:
    _, program = stack()
    sites = sites_of(program)
    assert [site.name for site in sites] == [f"blocks.{index}" for index in range(4)]
    assert [site.bindings["branches"] for site in sites] == [2] * 4
    assert [site.inputs[0] for site in sites[1:]] == [site.output for site in sites[:-1]]


def test_influence_is_one_less_the_mean_cosine() -> None:
    module, program = stack()
    x = rows().double()
    module = module.double()
    expected = []
    for block in module.blocks:
        with torch.no_grad():
            y = block(x)
        cosines = []
        for before, after in zip(x.flatten(0, 1).tolist(), y.flatten(0, 1).tolist(), strict=True):
            product = sum(a * b for a, b in zip(before, after, strict=True))
            lengths = sum(a * a for a in before) * sum(b * b for b in after)
            cosines.append(product / lengths**0.5)
        expected.append(1 - sum(cosines) / len(cosines))
        x = y
    sites = sites_of(program)
    found = block_influence(program, sites, context_of(program).data)
    assert [found[site.output] for site in sites] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"ratio": 0.5}, (0, 2)),
        ({"layers": "0+2", "ratio": 0.0}, (1, 3)),
        ({}, (0, 2, 3)),
        ({"layers": "0+2"}, (1, 3)),
        ({"layers": "not-1", "ratio": 0.5}, (1, 2)),
    ],
    ids=str,
)
def test_what_is_left_is_the_model_without_the_layers(options: dict[str, str], left: tuple[int, ...]) -> None:
    _, program = stack()
    after, result = grafted(PruneLayers(**options), program)
    assert_near(after.run(rows())[0], stack(*left)[1].run(rows())[0], 1e-6)
    assert set(result.changed) == {f"blocks.{index}" for index in range(4) if index not in left}
    said = [one.note for one in result.outcomes]
    assert any("influence" in one for one in said) == (options.get("layers") != "0+2")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "gpt2", "bert", "vit"])
def test_models_of_many_kinds(model: str, tmp_path: Path) -> None:
    entry, built = zoo.entry(model), zoo.entry(model).build()
    program = passed(zoo.program(model), "canonicalize,fuse,prune-layers:layers=0")
    inner = built.module.model
    for path in ("model.layers", "transformer.h", "encoder.layer", "layers"):
        owner, _, leaf = path.rpartition(".")
        if hasattr(inner, path.split(".")[0]):
            holder = inner.get_submodule(owner)
            setattr(holder, leaf, nn.ModuleList(list(getattr(holder, leaf))[1:]))
            break
    expected = capture(built.module, built.inputs, source=model, role=entry.role, dynamic=entry.dynamic)
    lowered = LoweredProgram(program, tmp_path / "lowered")
    for example in (program.example_inputs, other_size(program)):
        for ours, theirs in zip(program.run(*example), expected.run(*example), strict=True):
            assert_near(ours, theirs, 1e-5)
        assert lowered.largest_error(*example) <= 1e-5 * max(float(one.abs().max()) for one in expected.run(*example))


@pytest.mark.slow
def test_residual_blocks_of_images_go() -> None:
    program = zoo.canonical("resnet")
    names = [site.name for site in sites_of(program)]
    assert names == [
        "encoder.stages.0.layers.0.layer",
        "encoder.stages.0.layers.1.layer",
        "encoder.stages.1.layers.1.layer",
    ]
    after, result = grafted(PruneLayers(layers="encoder.stages.1.layers.1.layer"), program)
    assert len(result.changed) == 1
    assert len(after.graph.nodes) < len(program.graph.nodes)


@pytest.mark.slow
def test_a_model_of_fewer_layers_decodes() -> None:
    whole = passed(zoo.program("llama"), "canonicalize,fuse,prune-layers:layers=0")
    incremental = passed(whole, "make-incremental")
    tokens = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = whole.run(tokens, torch.ones_like(tokens))[0]
    decoder = Decoder(incremental, run_program(incremental), rows=2, capacity=16)
    found = torch.cat([decoder.read(piece) for piece in torch.split(tokens, [5, 1, 3], dim=1)], dim=1)
    torch.testing.assert_close(found[:, -3:], expected[:, -3:], rtol=0, atol=1e-4 * float(expected.abs().max()))


class Curve(nn.Module):
    """Sums that are no residual layers: x + x ** 3, and a sum with a layer of something else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Two tensors [batch, 8] to one."""
        hidden = self.first(x)
        return hidden + 0.1 * hidden**3 + self.second(other)


def test_other_sums_are_no_layers() -> None:
    program = captured(Curve().eval(), x=torch.randn(3, WIDTH), other=torch.randn(3, WIDTH))
    assert sites_of(program) == []


def test_what_is_refused() -> None:
    _, program = stack()
    reasons = refusals(PruneLayers(), program)
    assert len(reasons) == 3
    assert all("the first 1 go" in reason for reason in reasons.values())
    context = dataclasses.replace(context_of(program), data=Dataset("none", (), ()))
    with pytest.raises(CompilerError, match="there is no data"):
        refusals(PruneLayers(), program, context)
    with pytest.raises(CompilerError, match="ratio=2 is not from 0 to below 1"):
        build(PruneLayers, {"ratio": "2"})
