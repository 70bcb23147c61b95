"""regraft::rnn, gru and lstm against ONNX Runtime's kernels, torch's own, and numeric gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from one_node_model import run_nodes
from onnx import helper

from compiler.ops.gru import gru, gru_reference
from compiler.ops.lstm import lstm, lstm_reference
from compiler.ops.recurrence import ACTIVATIONS
from compiler.ops.rnn import rnn, rnn_reference

LENGTH, BATCH, WIDTH, HIDDEN = 5, 3, 4, 2
KINDS: dict[str, tuple[Any, Any, int, list[str]]] = {
    "RNN": (rnn, rnn_reference, 1, ["Tanh"]),
    "GRU": (gru, gru_reference, 3, ["Sigmoid", "Tanh"]),
    "LSTM": (lstm, lstm_reference, 4, ["Sigmoid", "Tanh", "Tanh"]),
}
NAMES = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


def layer_inputs(
    kind: str, direction: str = "forward", *, lengths: bool = False, dtype: Any = torch.float32, peepholes: bool = False
) -> list[Any]:
    """The tensors of a layer, in the operator's order."""
    generator = torch.Generator().manual_seed(7)
    gates, count = KINDS[kind][2], 2 if direction == "bidirectional" else 1

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    tensors = [
        random(LENGTH, BATCH, WIDTH),
        random(count, gates * HIDDEN, WIDTH),
        random(count, gates * HIDDEN, HIDDEN),
        random(count, 2 * gates * HIDDEN),
        torch.tensor([5, 2, 3], dtype=torch.int32) if lengths else None,
        random(count, BATCH, HIDDEN),
    ]
    if kind == "LSTM":
        tensors += [random(count, BATCH, HIDDEN), random(count, 3 * HIDDEN) if peepholes else None]
    return tensors


def runtime_result(kind: str, tensors: list[Any], **attributes: Any) -> list[Any]:
    """What ONNX Runtime gives."""
    given = {name: one.numpy() for name, one in zip(NAMES, tensors, strict=False) if one is not None}
    names = [name if name in given else "" for name in NAMES[: len(tensors)]]
    outputs = ["y", "y_h", "y_c"][: 3 if kind == "LSTM" else 2]
    return run_nodes([helper.make_node(kind, names, outputs, hidden_size=HIDDEN, **attributes)], given, {}, outputs)


def extra(kind: str, value: bool = False) -> list[bool]:
    """The argument that GRU and LSTM have before the settings."""
    return [] if kind == "RNN" else [value]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [False, True])
def test_against_onnx_runtime(kind: str, direction: str, lengths: bool):
    operator, _, _, usual = KINDS[kind]
    tensors = layer_inputs(kind, direction, lengths=lengths)
    activations = usual * (2 if direction == "bidirectional" else 1)
    found = operator(*tensors, *extra(kind), direction, activations, [], [], 0.0)
    for ours, theirs in zip(found, runtime_result(kind, tensors, direction=direction), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-6)


def test_peepholes_clip_and_coupled_gates_against_onnx_runtime():
    tensors = layer_inputs("LSTM", peepholes=True)
    found = lstm(*tensors, True, "forward", ["Sigmoid", "Tanh", "Tanh"], [], [], 0.5)
    for ours, theirs in zip(found, runtime_result("LSTM", tensors, clip=0.5, input_forget=1), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["Affine", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "ScaledTanh", "Softplus",
                                  "Softsign", "ThresholdedRelu"])  # fmt: skip
def test_activations_against_onnx_runtime(name: str):
    tensors, count = layer_inputs("GRU"), len(ACTIVATIONS[name.lower()][0])
    alphas, betas = [0.3] * (count > 0), [0.2] * (count > 1)
    found = gru(*tensors, True, "forward", ["Sigmoid", name], alphas, betas, 0.0)
    settings = {"activation_alpha": alphas, "activation_beta": betas}
    stated = {key: value for key, value in settings.items() if value}
    expected = runtime_result("GRU", tensors, linear_before_reset=1, activations=["Sigmoid", name], **stated)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_torchs_kernel_gives_what_the_definition_gives(kind: str, direction: str):
    operator, reference, _, usual = KINDS[kind]
    activations = usual * (2 if direction == "bidirectional" else 1)
    inputs = [*layer_inputs(kind, direction, dtype=torch.float64), *extra(kind, kind == "GRU")]
    found = operator(*inputs, direction, activations, [], [], 0.0)
    for ours, defined in zip(found, reference(*inputs, direction, activations, [], [], 0.0), strict=True):
        torch.testing.assert_close(ours, defined, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [False, True])
def test_gradients(kind: str, lengths: bool):
    operator, _, _, usual = KINDS[kind]
    tensors = layer_inputs(kind, lengths=lengths, dtype=torch.float64)
    leaves = [one.requires_grad_() if one is not None and one.is_floating_point() else one for one in tensors]
    settings = [*extra(kind, kind == "GRU"), "forward", usual, [], [], 0.0]
    assert torch.autograd.gradcheck(lambda *given: operator(*given, *settings), leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_no_steps_give_the_first_states(kind: str):
    operator, _, _, usual = KINDS[kind]
    tensors = layer_inputs(kind)
    tensors[0] = tensors[0][:0]
    y, *states = operator(*tensors, *extra(kind), "forward", usual, [], [], 0.0)
    assert y.shape == (0, 1, BATCH, HIDDEN)
    torch.testing.assert_close(states[0], tensors[5])


@pytest.mark.parametrize(
    ("direction", "activation", "message"), [("up", "Tanh", "direction 'up'"), ("forward", "Tan", "activation 'Tan'")]
)
def test_unknown_settings_are_refused(direction: str, activation: str, message: str):
    with pytest.raises(ValueError, match=message):
        rnn(*layer_inputs("RNN"), direction, [activation], [], [], 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_schema_fake_and_autograd_agree(kind: str):
    _, _, _, usual = KINDS[kind]
    operator = getattr(torch.ops.regraft, kind.lower()).default
    tensors = [one.requires_grad_() if one is not None else None for one in layer_inputs(kind)]
    torch.library.opcheck(operator, (*tensors, *extra(kind), "forward", usual, [], [], 0.0))
