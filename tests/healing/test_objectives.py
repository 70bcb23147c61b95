"""What healing makes small, against the formulas in plain float64 loops."""

from __future__ import annotations

import math

import pytest
import torch
from healing_models import tiny_program
from torch import Tensor, nn

from compiler.healing.frozen_graph import FrozenLinear, WeightForms, frozen_graph
from compiler.healing.objectives import Divergence, OutputError, cut_graphs


def kl_in_loops(found: Tensor, wanted: Tensor) -> float:
    """Mean over rows of sum p (log p - log q), from logits [rows, vocabulary]."""
    total = 0.0
    for ours, theirs in zip(found.double().tolist(), wanted.double().tolist(), strict=True):
        norm_q, norm_p = (math.log(sum(math.exp(z) for z in row)) for row in (ours, theirs))
        total += sum(
            math.exp(z_p - norm_p) * ((z_p - norm_p) - (z_q - norm_q)) for z_q, z_p in zip(ours, theirs, strict=True)
        )
    return total / len(found)


@pytest.mark.parametrize("heads", [True, False], ids=["after a head", "logits"])
def test_divergence_is_the_formula(heads: bool) -> None:
    torch.manual_seed(0)
    found, wanted = torch.randn(2, 90, 7), torch.randn(2, 90, 7)
    student, teacher = (FrozenLinear(torch.randn(9, 7), torch.randn(9)) if heads else None for _ in range(2))
    loss = Divergence(student, teacher).loss(found, wanted, None)
    logits = [
        x.flatten(0, 1) if head is None else head(x).flatten(0, 1) for x, head in ((found, student), (wanted, teacher))
    ]
    assert float(loss) == pytest.approx(kl_in_loops(*logits), rel=1e-5)


def test_its_gradient_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    found = torch.randn(1, 200, 7, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(1, 200, 7, dtype=torch.float64)
    head = FrozenLinear(torch.randn(9, 7, dtype=torch.float64), None)
    (3 * Divergence(head, head).loss(found, wanted, None)).backward()
    again = found.detach().clone().requires_grad_()
    log_q, log_p = ((x @ head.weight.T).log_softmax(-1) for x in (again, wanted))
    (3 * nn.functional.kl_div(log_q[0], log_p[0], log_target=True, reduction="batchmean")).backward()
    torch.testing.assert_close(found.grad, again.grad)


def test_padding_does_not_count() -> None:
    torch.manual_seed(0)
    found, wanted = torch.randn(2, 4, 7), torch.randn(2, 4, 7)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    kept = kl_in_loops(found[mask], wanted[mask])
    assert float(Divergence(None, None).loss(found, wanted, mask)) == pytest.approx(kept, rel=1e-5)
    errors = [float(OutputError().loss(x[mask], wanted[mask], None)) for x in (found,)]
    assert float(OutputError().loss(found, wanted, mask)) == pytest.approx(errors[0], rel=1e-6)


def test_tokens_that_can_never_come_do_not_break_it() -> None:
    wanted = torch.tensor([[[0.0, 1.0, -math.inf]]])
    assert float(Divergence(None, None).loss(wanted + 0, wanted, None)) == 0


def test_output_error_is_the_formula() -> None:
    torch.manual_seed(0)
    found, wanted = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    squares, power, cosines = 0.0, 0.0, []
    for ours, theirs in zip(found.double().flatten(0, 1).tolist(), wanted.double().flatten(0, 1).tolist(), strict=True):
        squares += sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True))
        power += sum(b**2 for b in theirs)
        dot = sum(a * b for a, b in zip(ours, theirs, strict=True))
        cosines.append(dot / math.sqrt(sum(a**2 for a in ours)) / math.sqrt(sum(b**2 for b in theirs)))
    expected = squares / power + 1 - sum(cosines) / len(cosines)
    assert float(OutputError().loss(found, wanted, None)) == pytest.approx(expected, rel=1e-5)


def test_graphs_are_cut_before_the_head_and_say_the_same() -> None:
    program = tiny_program()
    teacher, student = (frozen_graph(program, WeightForms(half=False)) for _ in range(2))
    objective = cut_graphs(program, teacher, student)
    assert isinstance(objective, Divergence)
    ids = torch.randint(0, 48, (2, 6))
    (hidden,) = teacher(ids)
    assert hidden.shape == (2, 6, 16)
    moved = hidden + torch.randn(hidden.shape)
    head = program.weight("head.weight")
    logits = [(x @ head.T).flatten(0, 1) for x in (moved, hidden)]
    assert float(objective.loss(moved, hidden, None)) == pytest.approx(kl_in_loops(*logits), rel=1e-5)


def test_other_models_are_compared_by_their_outputs() -> None:
    program = tiny_program("encoder")
    teacher, student = (frozen_graph(program, WeightForms(half=False)) for _ in range(2))
    assert isinstance(cut_graphs(program, teacher, student), OutputError)
    ids = torch.randint(0, 48, (2, 6))
    torch.testing.assert_close(teacher(ids)[0], program.run(ids)[0])
