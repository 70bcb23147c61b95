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
    past, length, found = None, None, []
    for part in x.split(pieces, 1):
        output, past = token_delay(part, past, length, delay)
        found.append(output)
        length = torch.full((2,), sum(one.shape[1] for one in found))
    for t in range(13):
        expected = x[:, t - delay] if t >= delay else torch.zeros(2, 3, dtype=torch.float64)
        assert torch.equal(torch.cat(found, 1)[:, t], expected)
    assert past is not None
    for t in range(max(0, 13 - delay), 13):
        assert torch.equal(past[:, t % delay], x[:, t])


def test_rows_of_different_lengths() -> None:
    whole, lengths = line(13), torch.tensor([2, 7])
    past = torch.stack(
        [token_delay(whole[row : row + 1, :length], None, None, 4)[1][0] for row, length in enumerate(lengths)]
    )
    new = torch.stack([whole[row, length : length + 6] for row, length in enumerate(lengths)])
    output, _ = token_delay(new, past, lengths, 4)
    expected = token_delay(whole, None, None, 4)[0]
    for row, length in enumerate(lengths):
        assert torch.equal(output[row], expected[row, length : length + 6])


@pytest.mark.parametrize("with_past", [True, False])
def test_it_is_well_registered_and_its_gradients_are_right(with_past: bool) -> None:
    x, past = line(7).requires_grad_(), line(4).requires_grad_() if with_past else None
    length = torch.tensor([3, 9]) if with_past else None
    torch.library.opcheck(torch.ops.regraft.token_delay.default, (x, past, length, 4))
    leaves = [x] if past is None else [x, past]
    assert torch.autograd.gradcheck(lambda *given: token_delay(*given, *[None] * (2 - len(given)), length, 4), leaves)


@pytest.mark.parametrize(
    ("x", "past", "length", "delay", "message"),
    [
        (line(3), None, None, 0, "a token at least"),
        (line(3)[0], None, None, 2, "a token at least"),
        (line(3), line(3), torch.zeros(2).long(), 2, "is not"),
        (line(3), line(2).float(), torch.zeros(2).long(), 2, "past is torch.float32"),
        (line(3), line(2), None, 2, "come together"),
    ],
)
def test_inputs_that_do_not_fit(
    x: Tensor, past: Tensor | None, length: Tensor | None, delay: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        token_delay(x, past, length, delay)
