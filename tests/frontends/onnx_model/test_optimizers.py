"""Steps of optimizers against torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from backend_cases import run_lowered
from onnx import TensorProto, helper

from compiler.errors import CompilerError
from compiler.frontends.onnx_model.model_file import prepared
from compiler.frontends.onnx_model.reading import program_from_onnx
from compiler.program import Program

RATE = 0.1
OPTIMIZERS: dict[str, tuple[str, dict[str, Any], Callable[[list[torch.nn.Parameter]], Any], list[str]]] = {
    "Adagrad": (
        "Adagrad",
        {"decay_factor": 0.5, "epsilon": 1e-3},
        lambda weights: torch.optim.Adagrad(weights, RATE, lr_decay=0.5, eps=1e-3),
        ["sum"],
    ),
    "momentum": (
        "Momentum",
        {"alpha": 0.9, "beta": 1.0, "mode": "standard", "norm_coefficient": 0.01},
        lambda weights: torch.optim.SGD(weights, RATE, momentum=0.9, weight_decay=0.01),
        ["momentum_buffer"],
    ),
    "Nesterov's momentum": (
        "Momentum",
        {"alpha": 0.9, "beta": 1.0, "mode": "nesterov", "norm_coefficient": 0.0},
        lambda weights: torch.optim.SGD(weights, RATE, momentum=0.9, nesterov=True),
        ["momentum_buffer"],
    ),
    "Adam": (
        "Adam",
        {"alpha": 0.8, "beta": 0.9, "epsilon": 0.0},
        lambda weights: torch.optim.Adam(weights, RATE, betas=(0.8, 0.9), eps=0.0),
        ["exp_avg", "exp_avg_sq"],
    ),
}


def step_of_two_tensors(op: str, attributes: dict[str, Any], kinds: int) -> Program:
    names = [f"{kind}{index}" for kind in "xgvh"[:kinds] for index in range(2)]
    results = [f"new_{name}" for name in names if name[0] != "g"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in names]
    rate = helper.make_tensor_value_info("rate", TensorProto.FLOAT, [])
    steps = helper.make_tensor_value_info("steps", TensorProto.INT64, [])
    node = helper.make_node(op, ["rate", "steps", *names], results, domain="ai.onnx.preview.training", **attributes)
    outputs = [onnx.ValueInfoProto(name=name) for name in results]
    graph = helper.make_graph([node], "step", [rate, steps, *values], outputs)
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.preview.training", 1)]
    proto = helper.make_model(graph, opset_imports=versions, ir_version=10)
    model = prepared("reading a step", ir.serde.deserialize_model(proto))
    return program_from_onnx(model, doing="reading a step", source="a step")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_second_step_is_that_of_torch(name: str) -> None:
    op, attributes, build, kept_names = OPTIMIZERS[name]
    weights = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    optimizer = build(weights)
    gradients = torch.rand(2, 2, 3) + 0.1
    before: list[torch.Tensor] = []
    for step in range(2):
        before = [weight.detach().clone() for weight in weights]
        before += list(gradients[step])
        before += [optimizer.state[weight][kept].clone() for kept in kept_names for weight in weights if step]
        for weight, gradient in zip(weights, gradients[step], strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    count = 2 if op == "Adam" else 1
    program = step_of_two_tensors(op, attributes, 2 + len(kept_names))
    expected = [*weights, *(optimizer.state[weight][kept] for kept in kept_names for weight in weights)]
    inputs = [torch.tensor(RATE), torch.tensor(count), *before]
    for found in (program.run(*inputs), run_lowered(program, inputs)):
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs.detach())


def test_unknown_momentum_is_refused() -> None:
    with pytest.raises(CompilerError, match="mode is 'heavy'"):
        step_of_two_tensors("Momentum", {"alpha": 0.9, "beta": 1.0, "mode": "heavy", "norm_coefficient": 0.0}, 3)
