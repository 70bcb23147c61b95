"""Steps of optimizers, as models of whole training steps hold them: Adagrad, Adam, SGD with momentum.

Each takes the learning rate, the number of steps before this one, and then of every tensor: its value, its gradient and
what the optimizer keeps. It gives the new values of all tensors, and then what is kept, kind by kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from compiler.frontends.onnx_model.node_context import NodeContext
from compiler.frontends.onnx_model.operator_table import operator

DOMAIN = "ai.onnx.preview.training"
Step = Callable[..., tuple[Tensor, ...]]


def _each(step: Step, inputs: Sequence[Tensor], kinds: int) -> tuple[Tensor, ...]:
    """`step` of every tensor. Of n tensors, the first n inputs are the values, the next n the gradients, and so on."""
    count, rest = divmod(len(inputs), kinds)
    if rest or not count:
        raise ValueError(f"every tensor takes {kinds} inputs, and there are {len(inputs)}")
    results = [step(*inputs[index::count]) for index in range(count)]
    return tuple(one for kind in zip(*results, strict=True) for one in kind)


@operator("Adagrad", domain=DOMAIN)
def adagrad(
    rate: Tensor,
    steps: Tensor,
    *inputs: Tensor,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> tuple[Tensor, ...]:
    """Duchi, Hazan and Singer 2011."""

    def step(x: Tensor, gradient: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        gradient = norm_coefficient * x + gradient
        squares = squares + gradient * gradient
        return x - rate / (1 + steps * decay_factor) * gradient / (squares.sqrt() + epsilon), squares

    return _each(step, inputs, 3)


@operator("Adam", domain=DOMAIN)
def adam(
    rate: Tensor,
    steps: Tensor,
    *inputs: Tensor,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[Tensor, ...]:
    """Kingma and Ba 2015. The rate is not corrected before the first step."""
    count = steps.to(rate.dtype)
    corrected = torch.where(steps > 0, rate * torch.sqrt(1 - beta**count) / (1 - alpha**count), rate)

    def step(x: Tensor, gradient: Tensor, mean: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient = norm_coefficient * x + gradient
        mean = alpha * mean + (1 - alpha) * gradient
        squares = beta * squares + (1 - beta) * gradient * gradient
        x = x - corrected * mean / (squares.sqrt() + epsilon)
        return (1 - norm_coefficient_post) * x, mean, squares

    return _each(step, inputs, 4)


@operator("Momentum", domain=DOMAIN)
def momentum(
    rate: Tensor,
    steps: Tensor,
    *inputs: Tensor,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
    node: NodeContext,
) -> tuple[Tensor, ...]:
    """SGD with momentum, standard or Nesterov's. The first step takes the whole gradient."""
    if mode not in ("standard", "nesterov"):
        raise node.refuse(f"mode is {mode!r}", "The modes are standard and nesterov.")
    share = torch.where(steps > 0, beta, 1.0)

    def step(x: Tensor, gradient: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        gradient = norm_coefficient * x + gradient
        velocity = alpha * velocity + share.to(x.dtype) * gradient
        direction = gradient + alpha * velocity if mode == "nesterov" else velocity
        return x - rate * direction, velocity

    return _each(step, inputs, 3)
