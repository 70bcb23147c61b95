"""Structures against brute force: alternating least squares from many starts, and formulas written out in loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler.structured.projection import Factors, leading_vectors, project, weighed_singular_values
from compiler.structured.structure import Structure, even_sizes
from compiler.structured.weighing import Weighing, root_of

SEEDS = st.integers(0, 9999)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment_of(features: int, seed: int, rows: int = 200) -> Tensor:
    """Of inputs that hang together."""
    x = drawn(rows, features, seed=seed) @ drawn(features, features, seed=seed + 1) + 0.1 * drawn(rows, features)
    return x.T @ x / rows


def cost(error: Tensor, rows: Tensor | None, moment: Tensor | None) -> float:
    """The definition, in loops."""
    outputs, inputs = error.shape
    total = 0.0
    for o in range(outputs):
        for a in range(inputs):
            for b in range(inputs):
                between = float(moment[a, b]) if moment is not None else float(a == b)
                total += (1.0 if rows is None else float(rows[o])) * float(error[o, a] * error[o, b]) * between
    return total


def alternated(weight: Tensor, structure: Structure, weighing: Weighing, seed: int) -> float:
    """The least cost that least squares in turns come to from a random start: factors as one big unknown each."""
    rows = torch.ones(len(weight), dtype=torch.float64) if weighing.rows is None else weighing.rows
    root = torch.eye(weight.shape[1], dtype=torch.float64) if weighing.moment is None else root_of(weighing.moment)
    scale = rows.sqrt()[:, None]
    target = (scale * weight @ root).flatten()
    up = [
        [drawn(o, structure.rank, seed=seed + 7 * i) for i, _ in enumerate(structure.in_sizes)]
        for o in structure.out_sizes
    ]
    last = math.inf
    for _ in range(3000):
        down = _solved(target, weight.shape, structure, scale, root, up=up)
        up = _solved(target, weight.shape, structure, scale, root, down=down)
        now = float((_dense(structure, up, down) - weight).mul(scale).matmul(root).square().sum())
        if last - now < 1e-12 * (1 + now):
            break
        last = now
    return now


def _dense(structure: Structure, up: list[list[Tensor]], down: list[list[Tensor]]) -> Tensor:
    return torch.cat(
        [torch.cat([u @ d for u, d in zip(us, ds, strict=True)], 1) for us, ds in zip(up, down, strict=True)]
    )


def _solved(
    target: Tensor,
    shape: torch.Size,
    structure: Structure,
    scale: Tensor,
    root: Tensor,
    up: list[list[Tensor]] | None = None,
    down: list[list[Tensor]] | None = None,
) -> list[list[Tensor]]:
    """Least squares for one factor of all blocks at once, by its whole design matrix."""
    columns = []
    blocks = [(j, i) for j in range(len(structure.out_sizes)) for i in range(len(structure.in_sizes))]
    for j, i in blocks:
        rows, ins = structure.out_slices[j], structure.in_slices[i]
        height = structure.out_sizes[j] if down is not None else structure.rank
        width = structure.in_sizes[i] if up is not None else structure.rank
        for a in range(height):
            for b in range(width):
                unit = torch.zeros(shape, dtype=torch.float64)
                if up is not None:
                    unit[rows, ins.start + b] = up[j][i][:, a]
                else:
                    assert down is not None
                    unit[rows.start + a, ins] = down[j][i][b]
                columns.append((scale * unit @ root).flatten())
    solution = torch.linalg.lstsq(torch.stack(columns, 1), target[:, None], driver="gelsd").solution[:, 0]
    found, at = [[torch.empty(0)] * len(structure.in_sizes) for _ in structure.out_sizes], 0
    for j, i in blocks:
        height = structure.out_sizes[j] if down is not None else structure.rank
        width = structure.in_sizes[i] if up is not None else structure.rank
        found[j][i] = solution[at : at + height * width].reshape(height, width)
        at += height * width
    return found


PLAIN = [
    Structure.of(4, 4, 2, 2, 1),
    Structure.of(6, 4, 2, 2, 1),
    Structure.of(5, 7, 2, 3, 1),
    Structure.of(6, 5, 1, 2, 2),
    Structure.of(5, 6, 1, 1, 2),
]


@pytest.mark.parametrize("structure", PLAIN, ids=str)
def test_no_start_leads_to_less_than_the_closed_form(structure: Structure) -> None:
    weight = drawn(sum(structure.out_sizes), sum(structure.in_sizes), seed=1)
    found = Weighing().cost(project(weight, structure).dense() - weight)
    least = min(alternated(weight, structure, Weighing(), seed) for seed in range(6))
    assert found == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("structure", [Structure.of(5, 6, 1, 1, 2), Structure.of(6, 4, 2, 2, 1)], ids=str)
def test_weighed_factors_are_among_the_best_of_many_starts(structure: Structure) -> None:
    outputs, inputs = sum(structure.out_sizes), sum(structure.in_sizes)
    weight, moment = drawn(outputs, inputs, seed=2), moment_of(inputs, 3)
    weighing = Weighing(drawn(outputs, seed=4).square() + 0.1, moment)
    found = weighing.cost(project(weight, structure, weighing).dense() - weight)
    least = min(alternated(weight, structure, weighing, seed) for seed in range(8))
    assert found <= least * 1.05
    if len(structure.in_sizes) == 1:
        assert found == pytest.approx(least, rel=1e-6)


@settings(max_examples=20)
@given(seed=SEEDS, out=st.integers(2, 12), inputs=st.integers(2, 12), rank=st.integers(1, 4))
def test_whitened_is_the_analytic_optimum(seed: int, out: int, inputs: int, rank: int) -> None:
    """SVD-LLM: S from Cholesky of X X^T, truncated decomposition of W S, times S^-1; lost: its singular values."""
    weight, moment = drawn(out, inputs, seed=seed), moment_of(inputs, seed + 5)
    rank = min(rank, out, inputs)
    lower = torch.linalg.cholesky(moment)
    u, s, v = torch.linalg.svd(weight @ lower)
    expected = u[:, :rank] * s[:rank] @ v[:rank] @ torch.linalg.inv(lower)
    found = project(weight, Structure.of(out, inputs, 1, 1, rank), Weighing(moment=moment)).dense()
    lost = Weighing(moment=moment).cost(found - weight)
    assert lost == pytest.approx(float(s[rank:].square().sum()), rel=1e-6, abs=1e-9 * float(s[0]) ** 2)
    gap = float(s[rank - 1] - s[rank]) / float(s[0]) if rank < len(s) else 1.0
    if gap > 1e-2:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    torch.testing.assert_close(
        weighed_singular_values(weight, Weighing(moment=moment), Structure.of(out, inputs, 1, 1, 1))[: len(s)],
        s,
        rtol=1e-6,
        atol=1e-6,
    )


def test_whitened_on_inputs_that_span_few_directions_loses_nothing_there() -> None:
    x = drawn(40, 3) @ drawn(3, 10, seed=1)
    weight = drawn(8, 10, seed=2)
    found = project(weight, Structure.of(8, 10, 1, 1, 3), Weighing(moment=x.T @ x / 40)).dense()
    torch.testing.assert_close(x @ found.T, x @ weight.T, rtol=0, atol=1e-6)


def test_fisher_on_one_side_is_its_formula() -> None:
    """FWSVD: the truncated decomposition of diag(sqrt(sum of a row of F)) W, times the inverse of that diagonal."""
    weight, fisher = drawn(7, 5), drawn(7, 5, seed=1).square()
    importance = torch.diag(fisher.sum(1).sqrt())
    u, s, v = torch.linalg.svd(importance @ weight, full_matrices=False)
    expected = torch.linalg.inv(importance) @ (u[:, :2] * s[:2] @ v[:2])
    found = project(weight, Structure.of(7, 5, 1, 1, 2), Weighing(fisher.sum(1))).dense()
    torch.testing.assert_close(found, expected)


def test_fisher_on_both_sides_is_its_formula() -> None:
    """LQ-LoRA: D_row and D_col from the means of F by row and by column."""
    weight, fisher = drawn(7, 5), drawn(7, 5, seed=1).square()
    left, right = torch.diag(fisher.mean(1).sqrt()), torch.diag(fisher.mean(0).sqrt())
    u, s, v = torch.linalg.svd(left @ weight @ right, full_matrices=False)
    expected = torch.linalg.inv(left) @ (u[:, :2] * s[:2] @ v[:2]) @ torch.linalg.inv(right)
    weighing = Weighing(fisher.mean(1), torch.diag(fisher.mean(0)))
    torch.testing.assert_close(project(weight, Structure.of(7, 5, 1, 1, 2), weighing).dense(), expected)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_the_cost_is_its_definition(seed: int) -> None:
    error, rows, moment = drawn(3, 4, seed=seed), drawn(3, seed=seed + 1).square(), moment_of(4, seed + 2)
    for weighing in (Weighing(), Weighing(rows), Weighing(moment=moment), Weighing(rows, moment)):
        assert weighing.cost(error) == pytest.approx(cost(error, weighing.rows, weighing.moment), rel=1e-9)


@settings(max_examples=15)
@given(seed=SEEDS, out_blocks=st.integers(1, 3), in_blocks=st.integers(2, 4))
def test_turns_never_end_above_blocks_fitted_alone(seed: int, out_blocks: int, in_blocks: int) -> None:
    structure = Structure.of(9, 11, out_blocks, in_blocks, 1)
    weight, moment = drawn(9, 11, seed=seed), moment_of(11, seed + 3)
    together = Weighing(moment=moment).cost(project(weight, structure, Weighing(moment=moment)).dense() - weight)
    apart = torch.zeros_like(weight)
    for part in structure.in_slices:
        alone = Structure(structure.out_sizes, structure.in_sizes[:1], 1)
        alone = Structure(structure.out_sizes, (part.stop - part.start,), 1)
        apart[:, part] = project(weight[:, part], alone, Weighing(moment=moment[part, part])).dense()
    assert together <= Weighing(moment=moment).cost(apart - weight) * (1 + 1e-9)


def monarch_by_definition(blocks: int, seed: int) -> Tensor:
    """M = P L P^T R of definition 3.1 in loops: M[l * m + j, k * m + i] = L[j, l, k] R[k, j, i] for m = blocks."""
    left, right = drawn(blocks, blocks, blocks, seed=seed), drawn(blocks, blocks, blocks, seed=seed + 1)
    matrix = torch.zeros(blocks**2, blocks**2, dtype=torch.float64)
    for row in range(blocks):
        for j in range(blocks):
            for k in range(blocks):
                matrix[row * blocks + j, k * blocks : (k + 1) * blocks] = left[j, row, k] * right[k, j]
    return matrix


def strided(size: int, blocks: int) -> Tensor:
    """The permutation P of the definition: 0, m, 2m, ..., 1, m + 1, ..."""
    return torch.arange(size).reshape(blocks, -1).T.flatten()


def recovered(matrix: Tensor, blocks: int, rank: int = 1) -> float:
    """The largest error where rows and columns are taken in the order that `matrix` was made in."""
    size = len(matrix)
    factors = project(matrix, Structure.of(size, size, blocks, blocks, rank))
    assert factors.structure.parameter_count == 2 * blocks * size * rank
    return float((factors.dense() - matrix).abs().max())


@pytest.mark.parametrize("blocks", [2, 3, 4, 8, 16])
def test_monarch_matrices_come_back(blocks: int) -> None:
    matrix = monarch_by_definition(blocks, seed=blocks)
    assert recovered(matrix[strided(blocks**2, blocks)], blocks) < 1e-6


@pytest.mark.parametrize("blocks", [2, 4, 8, 16])
def test_hadamard_matrices_come_back(blocks: int) -> None:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < blocks**2:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    assert recovered(matrix[strided(blocks**2, blocks)], blocks) < 1e-6


@pytest.mark.parametrize("blocks", [2, 3, 4, 8, 16])
def test_fourier_matrices_come_back(blocks: int) -> None:
    """Cooley and Tukey: input n2 * i1 + i2 in blocks by i2, output j1 + n1 * j2 in blocks by j1."""
    size = blocks**2
    turns = torch.outer(torch.arange(size), torch.arange(size)) % size
    matrix = torch.exp(-2j * math.pi * turns.double() / size)
    order = strided(size, blocks)
    assert recovered(matrix[order][:, order], blocks) < 1e-6
    real = matrix.real[order][:, order]  # cos(a + b) has rank 2
    assert recovered(real, blocks, rank=2) < 1e-6


def test_factors_of_a_block_are_equally_long() -> None:
    factors = project(100 * drawn(6, 9), Structure.of(6, 9, 2, 3, 2))
    for ups, downs in zip(factors.up, factors.down, strict=True):
        for up, down in zip(ups, downs, strict=True):
            torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1))


def test_factors_by_blocks_make_the_dense_weight() -> None:
    factors = project(drawn(7, 9), Structure.of(7, 9, 2, 3, 2))
    assert isinstance(factors, Factors)
    x = drawn(4, 9, seed=3)
    hidden = [x[:, part] @ first.T for part, first in zip(factors.structure.in_slices, factors.first(), strict=True)]
    outputs = []
    for j, second in enumerate(factors.second()):
        outputs.append(torch.cat([one[:, 2 * j : 2 * j + 2] for one in hidden], 1) @ second.T)
    torch.testing.assert_close(torch.cat(outputs, 1), x @ factors.dense().T)


def test_a_zero_weight_stays_zero() -> None:
    for weighing in (Weighing(), Weighing(torch.zeros(6), torch.zeros(8, 8))):
        factors = project(torch.zeros(6, 8), Structure.of(6, 8, 2, 2, 1), weighing)
        assert torch.equal(factors.dense(), torch.zeros(6, 8, dtype=torch.float64))


@given(size=st.integers(1, 50), count=st.integers(1, 16))
def test_sizes_are_even(size: int, count: int) -> None:
    sizes = even_sizes(size, count)
    assert sum(sizes) == size
    assert len(sizes) == count
    assert max(sizes) - min(sizes) <= 1


@given(out=st.integers(8, 60), inputs=st.integers(8, 60), blocks=st.integers(1, 4), ratio=st.floats(0.05, 0.99))
def test_the_largest_rank_within_a_ratio(out: int, inputs: int, blocks: int, ratio: float) -> None:
    found = Structure.of(out, inputs, blocks, blocks, 1).at_ratio(ratio)
    more = Structure(found.out_sizes, found.in_sizes, found.rank + 1)
    assert found.parameter_count <= ratio * out * inputs * (1 + 1e-6)
    assert more.parameter_count > ratio * out * inputs
    counted = sum(
        t.numel() for t in (*project(drawn(out, inputs), found).first(), *project(drawn(out, inputs), found).second())
    )
    assert counted == found.parameter_count


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_leading_vectors_are_those_of_the_decomposition(shape: tuple[int, int]) -> None:
    matrix = drawn(*shape, seed=6)
    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    vectors, values = leading_vectors(matrix, 3)
    torch.testing.assert_close(values[:5], s[:5])
    torch.testing.assert_close((vectors.T @ u[:, :3]).abs(), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-7)
