"""What ONNX's RNN, GRU and LSTM share: activation functions, directions, sequences of different lengths.

x [length, batch, input]   sequence_lens [batch]   states [batch, hidden]   ->   y [length, batch, hidden]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]

ACTIVATIONS: dict[str, tuple[tuple[float, ...], Callable[..., Tensor]]] = {
    "affine": ((1.0, 0.0), lambda x, a, b: a * x + b),
    "elu": ((1.0,), lambda x, a: torch.where(x > 0, x, a * torch.expm1(x.clamp(max=0)))),
    "hardsigmoid": ((0.2, 0.5), lambda x, a, b: (a * x + b).clamp(0, 1)),
    "leakyrelu": ((0.01,), lambda x, a: torch.where(x >= 0, x, a * x)),
    "relu": ((), torch.relu),
    "scaledtanh": ((1.0, 1.0), lambda x, a, b: a * torch.tanh(b * x)),
    "sigmoid": ((), torch.sigmoid),
    "softplus": ((), torch.nn.functional.softplus),
    "softsign": ((), torch.nn.functional.softsign),
    "tanh": ((), torch.tanh),
    "thresholdedrelu": ((1.0,), lambda x, a: torch.where(x > a, x, 0.0)),
}
"""Name in lower case -> defaults of its parameters alpha and beta, and the function."""
DIRECTIONS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
SETTINGS = "str direction, str[] activations, float[] alphas, float[] betas, float clip"
"""The schema of a `Form`."""


@dataclass(frozen=True)
class Form:
    """The settings that the three operators share, in the order of their schemas.

    Raises ValueError for an unknown direction or activation.
    """

    direction: str
    activations: Sequence[str]
    alphas: Sequence[float]
    betas: Sequence[float]
    clip: float

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction {self.direction!r} is none of {', '.join(DIRECTIONS)}")
        for name in self.activations:
            if name.lower() not in ACTIVATIONS:
                raise ValueError(f"activation {name!r} is none of {', '.join(ACTIVATIONS)}")

    @property
    def turns(self) -> list[bool]:
        """Whether each direction runs from the last step to the first."""
        return DIRECTIONS[self.direction]

    def uses(self, *activations: str) -> bool:
        """Whether each direction has these activations, and nothing is clipped."""
        return self.clip <= 0 and [name.lower() for name in self.activations] == [*activations] * len(self.turns)

    def functions(self) -> list[list[Activation]]:
        """The activations by direction: each takes its parameters from the fronts of the lists while these last.

        Clipping is for the gates, the first two; ONNX Runtime leaves the cell that enters an LSTM's third as it is.
        """
        rest = [list(self.alphas), list(self.betas)]
        each = len(self.activations) // len(self.turns)
        listed = [
            self._function(name, rest, self.clip if index % each < 2 else 0.0)
            for index, name in enumerate(self.activations)
        ]
        return [listed[index * each :][:each] for index in range(len(self.turns))]

    def _function(self, name: str, rest: list[list[float]], clip: float) -> Activation:
        defaults, function = ACTIVATIONS[name.lower()]
        parameters = [given.pop(0) if given else default for default, given in zip(defaults, rest, strict=False)]
        return lambda x: function(x.clamp(-clip, clip) if clip > 0 else x, *parameters)


def run_steps(
    x: Tensor, states: tuple[Tensor, ...], sequence_lens: Tensor | None, reverse: bool, step: Step
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All first states, and the last ones: `step` takes a row of x and the states and gives the next states.

    Beyond a sequence's length the first states are 0 and the last ones stay as they were.
    """
    order = _reversed_order(x, sequence_lens) if reverse else None
    x = x if order is None else _in_order(x, order)
    rows = []
    for index in range(x.shape[0]):
        following = step(x[index], states)
        if sequence_lens is None:
            states = following
            rows.append(states[0])
        else:
            inside = (index < sequence_lens).unsqueeze(-1)  # [batch, 1]
            states = tuple(torch.where(inside, new, old) for new, old in zip(following, states, strict=True))
            rows.append(torch.where(inside, following[0], 0.0))
    y = torch.stack(rows) if rows else x.new_zeros(0, *states[0].shape)
    return (y if order is None else _in_order(y, order)), states


def _reversed_order(x: Tensor, sequence_lens: Tensor | None) -> Tensor:
    """[length, batch]: which step stands where when every sequence is turned around by itself."""
    length, batch = x.shape[:2]
    steps = torch.arange(length).unsqueeze(-1)  # [length, 1]
    if sequence_lens is None:
        return (length - 1 - steps).expand(length, batch)
    return torch.where(steps < sequence_lens, sequence_lens - 1 - steps, steps)


def _in_order(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(0, order.unsqueeze(-1).expand_as(x))


def state_or_zeros(state: Tensor | None, x: Tensor, r: Tensor) -> Tensor:
    """`state`, or zeros [directions, batch, hidden] for r [directions, gates * hidden, hidden]."""
    return x.new_zeros(r.shape[0], x.shape[1], r.shape[2]) if state is None else state


def empty_result(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """New tensors [length, directions, batch, hidden] and [directions, batch, hidden]."""
    count, hidden, (length, batch) = r.shape[0], r.shape[2], x.shape[:2]
    return x.new_empty(length, count, batch, hidden), x.new_empty(count, batch, hidden)


def product_flops(x_shape: Sequence[int], w_shape: Sequence[int], r_shape: Sequence[int]) -> int:
    """The arithmetic of the products with w and r; a multiply-add is two."""
    return 2 * x_shape[0] * x_shape[1] * w_shape[0] * w_shape[1] * (w_shape[2] + r_shape[2])


def regrouped(weight: Tensor, order: Sequence[int]) -> Tensor:
    """`weight` [gates * hidden, ...] with its gates in another order."""
    return torch.unflatten(weight, 0, (len(order), -1))[list(order)].flatten(0, 1)


def torch_weights(w: Tensor, r: Tensor, b: Tensor | None, order: Sequence[int]) -> list[Tensor]:
    """The weights as torch's own recurrent operators list them: by direction, gates in torch's order."""
    listed = []
    for direction in range(w.shape[0]):
        listed += [regrouped(w[direction], order), regrouped(r[direction], order)]
        if b is not None:
            listed += [regrouped(half, order) for half in b[direction].chunk(2)]
    return listed


def split_directions(y: Tensor, count: int, backwards: bool) -> Tensor:
    """torch's [length, batch, directions * hidden] as [length, directions, batch, hidden], turned if `backwards`."""
    y = y.flip(0) if backwards else y
    return torch.unflatten(y, -1, (count, -1)).transpose(1, 2).contiguous()


def differentiated(
    compute: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Any], gradients: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients of `compute(*inputs)` for every input, None for what is no floating tensor; computes it again."""
    with torch.enable_grad():
        leaves = [
            one.detach().requires_grad_() if isinstance(one, Tensor) and one.is_floating_point() else one
            for one in inputs
        ]
        outputs = compute(*leaves)
    wanted = [one for one in leaves if isinstance(one, Tensor) and one.requires_grad]
    pairs = [(one, gradient) for one, gradient in zip(outputs, gradients, strict=True) if gradient is not None]
    found = iter(torch.autograd.grad([one for one, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True))
    return tuple(next(found) if isinstance(one, Tensor) and one.requires_grad else None for one in leaves)
