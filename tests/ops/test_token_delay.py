"""token_delay against its formula, in one piece and in many."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compiler.ops.token_delay import token_delay


def line(tokens: int) -> Tensor:
    return torch.randn(2, tokens, 3, generator=torch.Generator().manual_seed(tokens), dtype=torch.float64)


@pytest.mark.parametrize("delay", [1, 3, 20])
@pytest.mark.parametrize("pieces", [(13,), (1,) * 13, (2, 1, 6, 1, 3), (5, 0, 8)])
def test_against_the_formula(delay: int, pieces: tuple[int, ...]) -> None:
    x = line(13)
    past, found = None, []
    for part in x.split(pieces, 1):
        output, past = token_delay(part, past, delay)
        found.append(output)
    for t in range(13):
        expected = x[:, t - delay] if t >= delay else torch.zeros(2, 3, dtype=torch.float64)
        assert torch.equal(torch.cat(found, 1)[:, t], expected)
    assert past is not None
    assert torch.equal(past[:, -min(13, delay) :], x[:, -min(13, delay) :])


@pytest.mark.parametrize("with_past", [True, False])
def test_it_is_well_registered_and_its_gradients_are_right(with_past: bool) -> None:
    x, past = line(7).requires_grad_(), line(4).requires_grad_() if with_past else None
    torch.library.opcheck(torch.ops.regraft.token_delay.default, (x, past, 4))
    leaves = [x] if past is None else [x, past]
    assert torch.autograd.gradcheck(lambda *given: token_delay(*given, *[None] * (2 - len(given)), 4), leaves)


@pytest.mark.parametrize(
    ("x", "past", "delay", "message"),
    [
        (line(3), None, 0, "a token at least"),
        (line(3)[0], None, 2, "a token at least"),
        (line(3), line(3), 2, "is not"),
        (line(3), line(2).float(), 2, "past is torch.float32"),
    ],
)
def test_inputs_that_do_not_fit(x: Tensor, past: Tensor | None, delay: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_delay(x, past, delay)
