"""regraft::lstm: one layer of ONNX's LSTM, with layout 0.

    x [length, batch, input]                 w [directions, 4 * hidden, input]    r [directions, 4 * hidden, hidden]
    b [directions, 8 * hidden]               sequence_lens [batch]                p [directions, 3 * hidden]
    initial_h, initial_c [directions, batch, hidden]
    -> y [length, directions, batch, hidden], y_h and y_c [directions, batch, hidden]

    i = f(x w_i + h r_i + p_i c + b_i)       o = f(x w_o + h r_o + p_o c' + b_o)
    F = f(x w_f + h r_f + p_f c + b_f)       c' = F c + i g(x w_c + h r_c + b_c)    h' = o h(c')

Gates stand in the order i, o, f, c; b holds the biases of w and then those of r; p is in the order i, o, f. Three
activations f, g, h a direction. `input_forget` makes F = 1 - i. Inputs of f and g are clipped where `clip` is above 0.
aten has no such operator whose trace keeps the length free: aten.lstm's is one for every length.

Source: Hochreiter and Schmidhuber 1997, with peepholes of Gers and Schmidhuber 2000; ONNX LSTM, opset 14.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from compiler.ops.recurrence import (
    SETTINGS,
    Form,
    differentiated,
    empty_result,
    product_flops,
    run_steps,
    split_directions,
    state_or_zeros,
    torch_weights,
)

SCHEMA = f"""(
    Tensor x, Tensor w, Tensor r, Tensor? b, Tensor? sequence_lens, Tensor? initial_h, Tensor? initial_c, Tensor? p,
    bool input_forget, {SETTINGS}
) -> (Tensor, Tensor, Tensor)"""
TORCH_GATES = (0, 2, 3, 1)
"""Where torch's gates i, f, c, o stand in ONNX's order."""
Result = tuple[Tensor, Tensor, Tensor]


def lstm_reference(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    sequence_lens: Tensor | None,
    initial_h: Tensor | None,
    initial_c: Tensor | None,
    p: Tensor | None,
    input_forget: bool,
    *settings: Any,
) -> Result:
    """The definition, step by step. Differentiable. `settings` are those of a Form."""
    form, hidden = Form(*settings), r.shape[-1]
    first_h, first_c = state_or_zeros(initial_h, x, r), state_or_zeros(initial_c, x, r)
    results = []
    for index, (reverse, functions) in enumerate(zip(form.turns, form.functions(), strict=True)):
        peepholes = x.new_zeros(3, hidden) if p is None else torch.unflatten(p[index], 0, (3, -1))
        step = partial(_step, r[index].t(), peepholes, functions, input_forget)
        biases = None if b is None else torch.unflatten(b[index], 0, (2, -1)).sum(0)
        projected = torch.nn.functional.linear(x, w[index], biases)  # [length, batch, 4 * hidden]
        results.append(run_steps(projected, (first_h[index], first_c[index]), sequence_lens, reverse, step))
    last_h, last_c = (torch.stack([states[which] for _, states in results]) for which in (0, 1))
    return torch.stack([y for y, _ in results], 1), last_h, last_c


def _step(
    weight: Tensor, peepholes: Tensor, functions: list[Any], input_forget: bool, row: Tensor, states: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    f, g, h = functions
    hidden, cell = states
    i, o, forget, c = (row + hidden @ weight).chunk(4, -1)  # each [batch, hidden]
    admitted = f(i + peepholes[0] * cell)
    kept = 1 - admitted if input_forget else f(forget + peepholes[2] * cell)
    cell = kept * cell + admitted * g(c)
    return f(o + peepholes[1] * cell) * h(cell), cell


def _computed(*inputs: Any) -> Result:
    """As the reference, by torch's own kernel where the form is torch's."""
    x, w, r, b, sequence_lens, initial_h, initial_c, p, input_forget, *settings = inputs
    form = Form(*settings)
    unusual = sequence_lens is not None or p is not None or input_forget or x.shape[0] == 0
    if unusual or not form.uses("sigmoid", "tanh", "tanh"):
        return lstm_reference(*inputs)
    states = [state_or_zeros(one, x, r) for one in (initial_h, initial_c)]
    both, backwards = len(form.turns) > 1, form.turns == [True]
    x = x.flip(0) if backwards else x
    y, *last = torch.lstm(x, states, torch_weights(w, r, b, TORCH_GATES), b is not None, 1, 0.0, False, both, False)
    return (split_directions(y, len(form.turns), backwards), *last)  # type: ignore[return-value]


@torch.library.custom_op("regraft::lstm", mutates_args=(), schema=SCHEMA)
def lstm(*inputs: Any) -> Result:
    """LSTM as the module's docstring defines it. Raises ValueError for an unknown direction or activation."""
    return _computed(*inputs)


@lstm.register_fake
def _(x: Tensor, w: Tensor, r: Tensor, *rest: Any) -> Result:
    y, state = empty_result(x, r)
    return y, state, torch.empty_like(state)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Result) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.settings = inputs[8:]


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    return differentiated(_computed, (*ctx.saved_tensors, *ctx.settings), gradients)


lstm.register_autograd(_backward, setup_context=_save_inputs)


@register_flop_formula(torch.ops.regraft.lstm)
def _flops(x_shape: Any, w_shape: Any, r_shape: Any, *rest: Any, **options: Any) -> int:
    return product_flops(x_shape, w_shape, r_shape)
