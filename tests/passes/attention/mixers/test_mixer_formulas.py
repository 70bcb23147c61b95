"""Each mixer that ships against its paper's formula, token by token in float64, with parameters off their start."""

from __future__ import annotations

import cmath
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compiler.mixers import Mixer, MixerOptions, MixerSizes
from compiler.mixers.associative import NORM_EPSILON
from compiler.registry import Registry

MIXERS = Registry(entry_points=False).mixers()
SIZES = MixerSizes(hidden_width=10, head_count=4, kv_head_count=2, key_dim=3, value_dim=5)
TOKENS = 9


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def unit(x: Tensor) -> Tensor:
    """Of length 1, but for the norm's epsilon."""
    return x / (x @ x + len(x) * NORM_EPSILON).sqrt()


def gate(of: Any, hidden: Tensor) -> Tensor:
    """What a Gate says: W h + c, or W2 W1 h + c."""
    inner = hidden if of.down is None else of.down.weight @ hidden
    return of.weight @ inner + of.bias


def mixer_of(kind: str, **chosen: Any) -> Any:
    mixer = MIXERS[kind](SIZES, MixerOptions(**chosen)).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in mixer.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    if hasattr(mixer, "unit"):
        mixer.unit.fill_(SIZES.key_dim**-0.5)  # in all digits of float64
    return mixer


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, query, key, value of one sequence, without the batch."""
    generator = torch.Generator().manual_seed(2)
    shapes = ((TOKENS, 10), (4, TOKENS, 3), (2, TOKENS, 3), (2, TOKENS, 5))
    hidden, query, key, value = (torch.randn(*one, dtype=torch.float64, generator=generator) for one in shapes)
    return hidden, query, key, value


def check(mixer: Mixer, expected: Callable[[int], Callable[[int], Tensor]]) -> None:
    """`expected(head)` gives a function that is asked for each token in turn and says what that query head reads."""
    hidden, query, key, value = (one[None] for one in inputs())
    with torch.no_grad():
        found = mixer.read(hidden, query, mixer.write(hidden, key, value), torch.arange(TOKENS)[None])
        for head in range(SIZES.head_count):
            answer = expected(head)
            for token in range(TOKENS):
                torch.testing.assert_close(found[0, head, token], answer(token))


def recurrence(
    mixer: Any, step: Callable[[Tensor, int, Tensor, Tensor, Tensor], Tensor]
) -> Callable[[int], Callable[[int], Tensor]]:
    """o = M_o S^T q with S = step(S, state head, hidden, key, value): keys and queries mapped and of length 1."""
    hidden, query, key, value = inputs()

    def of_head(head: int) -> Callable[[int], Tensor]:
        group, state = head // 2, torch.zeros(3, 5, dtype=torch.float64)

        def answer(token: int) -> Tensor:
            nonlocal state
            k = unit(key[group, token] @ mixer.key_map.weight[group])
            state = step(state, group, hidden[token], k, value[group, token])
            q = unit(query[head, token] @ mixer.query_map.weight[head])
            return (q @ state) @ mixer.output_map.weight[head]

        return answer

    return of_head


@pytest.mark.parametrize("negative", [None, True])
def test_gated_delta(negative: bool | None):
    """Yang et al. 2024, eq. 10: S = a (I - b k k^T) S + b k v^T."""
    mixer = mixer_of("gated-delta", negative_eigenvalues=negative)

    def step(state: Tensor, group: int, hidden: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a = torch.exp(-mixer.rate[group].exp() * softplus(gate(mixer.decays, hidden)[group]))
        b = (2 if negative else 1) * sigmoid(gate(mixer.strengths, hidden)[group])
        return a * (state - b * torch.outer(k, k) @ state) + b * torch.outer(k, v)

    check(mixer, recurrence(mixer, step))


def test_kda():
    """Kimi Team 2025, eq. 1: S = (I - b k k^T) diag(a) S + b k v^T."""
    mixer = mixer_of("kda")

    def step(state: Tensor, group: int, hidden: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rates = gate(mixer.decays, hidden).view(2, 3)[group]
        kept = torch.exp(-mixer.rate[group].exp() * softplus(rates))[:, None] * state
        b = sigmoid(gate(mixer.strengths, hidden)[group])
        return kept - b * torch.outer(k, k) @ kept + b * torch.outer(k, v)

    check(mixer, recurrence(mixer, step))


def test_gla():
    """Yang et al. 2023, eq. 3 and section 4.3: S = diag(a) S + k v^T, a = sigmoid(...)^(1 / 16); v scaled."""
    mixer = mixer_of("gla")

    def step(state: Tensor, group: int, hidden: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a = sigmoid(gate(mixer.decays, hidden).view(2, 3)[group]) ** (1 / 16)
        return a[:, None] * state + sigmoid(gate(mixer.strengths, hidden)[group]) * torch.outer(k, v)

    check(mixer, recurrence(mixer, step))


def test_lightning():
    """Qin et al. 2024, eq. 4: S = a S + k v^T with a fixed a a head; v scaled by 1 - a."""
    mixer = mixer_of("lightning")

    def step(state: Tensor, group: int, hidden: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a = torch.exp(mixer.decays[group])
        return a * state + (1 - a) * torch.outer(k, v)

    check(mixer, recurrence(mixer, step))


@pytest.mark.parametrize("steps", [2, 3])
def test_delta_product(steps: int):
    """Siems et al. 2025, eq. 4: several delta steps a token, the decay once."""
    mixer = mixer_of("delta-product", steps=steps)
    hidden, _, key, value = inputs()

    def step(state: Tensor, group: int, h: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (token,) = (at for at in range(TOKENS) if bool((hidden[at] == h).all()))
        state = torch.exp(-mixer.rate[group].exp() * softplus(gate(mixer.decays, h)[group])) * state
        strengths = sigmoid(gate(mixer.strengths, h)).view(steps, 2)[:, group]
        keys = [k, *(unit(key[group, token] @ one.weight[group]) for one in mixer.later_keys)]
        values = [v, *(value[group, token] @ one.weight[group] for one in mixer.later_values)]
        for b, k_i, v_i in zip(strengths, keys, values, strict=True):
            state = state + b * torch.outer(k_i, v_i - k_i @ state)
        return state

    check(mixer, recurrence(mixer, step))


def test_s4d():
    """Gu et al. 2022, eq. 9: x = exp(D A) x + B u, y = Re(C x); B is what keeps a constant input as large as it is."""
    mixer = mixer_of("s4d", state_size=3)
    _, _, _, value = inputs()

    def of_head(head: int) -> Callable[[int], Tensor]:
        group = head // 2
        step = float(mixer.log_step[group].exp())
        poles = [
            step * complex(-float(real.exp()), float(imaginary))
            for real, imaginary in zip(mixer.log_real[group], mixer.imaginary[group], strict=True)
        ]
        outputs = [
            complex(float(real), float(imaginary))
            for real, imaginary in zip(mixer.real_output[head], mixer.imaginary_output[head], strict=True)
        ]

        def answer(token: int) -> Tensor:
            mixed = torch.zeros(5, dtype=torch.float64)
            for pole, out in zip(poles, outputs, strict=True):
                state = torch.zeros(5, dtype=torch.complex128)
                for u in value[group, : token + 1]:
                    state = cmath.exp(pole) * state + (1 - abs(cmath.exp(pole))) * u
                mixed = mixed + (out * state).real
            return mixed @ mixer.output_map.weight[head]

        return answer

    check(mixer, of_head)


@pytest.mark.parametrize("size", [1, 4])
def test_short_conv(size: int):
    """LFM2: a gate, a depthwise causal convolution, a gate."""
    mixer = mixer_of("short-conv", kernel_size=size)
    hidden, _, _, value = inputs()

    def of_head(head: int) -> Callable[[int], Tensor]:
        group = head // 2

        def given(token: int) -> Tensor:
            return gate(mixer.given, hidden[token]).view(2, 5)[group] * value[group, token]

        def answer(token: int) -> Tensor:
            taps = mixer.weight.view(2, 5, size)[group]
            mixed = sum(taps[:, size - 1 - back] * given(token - back) for back in range(size) if back <= token)
            return mixed * gate(mixer.asked, hidden[token]).view(4, 5)[head]

        return answer

    check(mixer, of_head)
