"""low-rank-convolution: kernels that are two are found again, optima by plain loops, rungs, refusals, runtimes."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from lowered_program import LoweredProgram
from rewrite_checks import captured, context_of
from structured_checks import grafted, refusals
from torch import Tensor, nn

from compiler.evidence.data import Dataset
from compiler.evidence.fidelity import reference_outputs
from compiler.grafting import apply_graft
from compiler.passes.convolution.low_rank_convolution import LowRankConvolution
from compiler.program import Program

CHANNELS, OUT, RANK = 4, 10, 2


def pictures(count: int = 4, dims: int = 2) -> Tensor:
    """Smooth ones, as real ones are: [count, 4, 12, ...]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, CHANNELS, *[12] * dims, generator=generator)
    for dim in range(2, 2 + dims):
        x = x.cumsum(dim)
    return x / x.std()


def program_of(module: nn.Module, dims: int = 2) -> Program:
    return captured(module.eval(), x=pictures(dims=dims))


def error(found: Program, expected: Program) -> float:
    """Squared error of the outputs, as a part of their size."""
    ours, theirs = (one.run(*expected.example_inputs)[0] for one in (found, expected))
    return float((ours - theirs).square().sum() / theirs.square().sum())


def convolution(**options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(CHANNELS, OUT, options.pop("kernel_size", (3, 5)), **options)


@pytest.mark.parametrize("first_dims", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": (1, 2), "padding": (1, 2)}, {"dilation": (2, 1), "padding": "same"}, {"kernel_size": (1, 5)}],
    ids=["plain", "strided", "dilated", "narrow"],
)
@pytest.mark.parametrize("method", ["plain", "whitened"])
def test_a_kernel_that_is_two_is_found_again(first_dims: tuple[int, ...], options: dict[str, Any], method: Any) -> None:
    whole = convolution(**options)
    kernel = whole.kernel_size
    first = torch.randn(RANK, CHANNELS, *(size if dim in first_dims else 1 for dim, size in enumerate(kernel)))
    second = torch.randn(OUT, RANK, *(1 if dim in first_dims else size for dim, size in enumerate(kernel)))
    whole.weight.data = torch.einsum("rihw,orHW->oihHwW", first, second).reshape(whole.weight.shape)
    program = program_of(whole)
    after, result = grafted(LowRankConvolution(ratio=0.7, method=method), program)
    assert len(result.changed) == 1
    assert error(after, program) < 1e-9


def test_the_graph_before_and_after() -> None:
    after, result = grafted(LowRankConvolution(), program_of(convolution(kernel_size=(3, 9))))
    called = [str(node.target) for node in after.graph.nodes if node.op == "call_function"]
    assert called == ["aten.conv2d.default"] * 2
    shapes = [tuple(one.shape) for one in after.weights().values() if one.dim() == 4]
    counts = sum(torch.Size(shape).numel() for shape in shapes)
    assert counts <= 0.5 * OUT * CHANNELS * 27
    assert result.outcomes[0].note.startswith("kernels ")
    again, second = grafted(LowRankConvolution(), after)
    assert second.changed == ()
    assert again.text() == after.text()


def test_plain_loses_what_the_best_split_loses() -> None:
    """By loops: the kernel as a matrix, dims to one side or the other, its smallest singular values gone."""
    whole = convolution()
    weight = whole.weight.detach().double()
    losses = []
    for first_dims in ((), (0,), (1,), (0, 1)):
        rows: dict[Any, dict[Any, float]] = {}
        for o, i, *place in itertools.product(*map(range, weight.shape)):
            own = (i, *(place[dim] for dim in first_dims))
            other = (o, *(place[dim] for dim in range(2) if dim not in first_dims))
            rows.setdefault(other, {})[own] = float(weight[o, i, place[0], place[1]])
        matrix = torch.tensor([list(row.values()) for row in rows.values()], dtype=torch.float64)
        rank = min(int(0.5 * weight.numel() / sum(matrix.shape)), *matrix.shape)
        values = torch.linalg.svdvals(matrix)
        losses.append(float(values[rank:].square().sum() / values.square().sum()))
    _, result = grafted(LowRankConvolution(method="plain"), program_of(whole))
    assert f"error {min(losses):.2%}" in result.outcomes[0].note


def test_the_second_kernel_is_the_best_there_is_behind_the_first() -> None:
    """Against least squares on what the first one really gives."""
    whole = convolution(padding=(1, 2))
    program = program_of(whole)
    after, _ = grafted(LowRankConvolution(ratio=0.4), program)
    first, second = (one.detach() for one in after.weights().values() if one.dim() == 4)
    x, around = pictures(), lambda one: tuple(size // 2 for size in one.shape[2:])
    between = nn.functional.conv2d(x, first, padding=around(first))
    patches = nn.functional.unfold(between, second.shape[2:], padding=around(second))
    rows = patches.transpose(1, 2).flatten(0, 1).double()
    wanted = nn.functional.conv2d(x, whole.weight.detach(), padding=(1, 2)).flatten(2).transpose(1, 2).flatten(0, 1)
    best = (rows @ torch.linalg.lstsq(rows, wanted.double()).solution - wanted).square().sum()
    found = (rows @ second.flatten(1).double().T - wanted).square().sum()
    assert float(found) <= 1.02 * float(best)  # its moment has a firmer diagonal


def test_what_data_say_moves_outputs_less() -> None:
    program = program_of(convolution())
    plain, whitened = (grafted(LowRankConvolution(method=one), program)[0] for one in ("plain", "whitened"))
    assert error(whitened, program) < 0.5 * error(plain, program)


@pytest.mark.parametrize("dims", [1, 3])
def test_sounds_and_volumes(dims: int) -> None:
    torch.manual_seed(0)
    kind = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    program = program_of(kind(CHANNELS, OUT, 3, stride=2), dims)
    after, result = grafted(LowRankConvolution(ratio=0.7), program)
    assert len(result.changed) == 1
    assert error(after, program) < 0.3
    assert ("not weighed" in result.outcomes[0].note) == (dims == 3)


def test_a_gentler_rung_loses_less() -> None:
    program = program_of(convolution())
    limited = dataclasses.replace(context_of(program), max_drop=0.5)
    (proposal,) = LowRankConvolution(ratio=0.3).propose_all(_sites(program), program, limited)
    gentler = proposal.gentler()
    assert gentler.gentler is None
    lost = [float(one.note.split("error ")[1].rstrip("%")) for one in (proposal, gentler)]
    assert lost[1] < lost[0]


def test_a_site_that_costs_too_much_is_given_back() -> None:
    """Rungs come to an end, also where the best split has a lower rank than others would."""
    narrow = convolution(kernel_size=(1, 5))
    channels = torch.randn(RANK, CHANNELS)
    narrow.weight.data = torch.einsum("ri,orw->oiw", channels, torch.randn(OUT, RANK, 5))[:, :, None]
    program = program_of(nn.Sequential(narrow, nn.ReLU(), nn.Conv2d(OUT, 6, 3)))
    context = dataclasses.replace(context_of(program), max_drop=1e-6)
    reference = reference_outputs(program, context.data.scoring)
    after, result = apply_graft(LowRankConvolution(ratio=0.25), program, reference, context)
    assert "2" not in result.changed
    assert error(after, program) < 1e-6


def _sites(program: Program) -> list[Any]:
    from compiler.sites import find_sites

    return list(find_sites(program, ("convolution",)))


def test_without_data_it_says_so() -> None:
    program = program_of(convolution())
    data = Dataset("none", (program.example_inputs,), ())
    _, result = grafted(LowRankConvolution(), program, data=data)
    assert "not weighed: no data tell its patches" in result.outcomes[0].note


def test_refuses() -> None:
    grouped = program_of(nn.Conv2d(CHANNELS, 8, 3, groups=2))
    assert list(refusals(LowRankConvolution(), grouped).values()) == ["its channels are in 2 groups"]
    small = program_of(nn.Conv2d(CHANNELS, 1, 1))
    assert list(refusals(LowRankConvolution(), small).values()) == [
        "ratio=0.5 leaves no rank in a weight of 1 x 4 x 1 x 1"
    ]
    broken = convolution()
    broken.weight.data[0, 0, 0, 0] = float("inf")
    assert list(refusals(LowRankConvolution(), program_of(broken)).values()) == [
        "its weight weight holds values that are not finite"
    ]
    with pytest.raises(ValueError, match="ratio=1 is not between 0 and 1"):
        LowRankConvolution(ratio=1)


def test_it_runs_in_onnx_runtime(tmp_path: Path) -> None:
    module = nn.Sequential(convolution(stride=2, padding=1), nn.ReLU(), nn.Conv2d(OUT, 6, 3, bias=False))
    after, result = grafted(LowRankConvolution(), program_of(module))
    assert len(result.changed) == 2
    largest = float(after.run(*after.example_inputs)[0].abs().max())
    assert LoweredProgram(after, tmp_path / "lowered").largest_error(*after.example_inputs) <= 2e-6 * largest
