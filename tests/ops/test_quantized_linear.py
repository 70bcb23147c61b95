"""quantized_linear against plain loops and against ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from compiler.ops.quantized_linear import dequantized_weight, inputs_rounded, quantized_linear
from compiler.quantization.packing import pack_codes, pack_zero_points
from tests.ops.one_node_model import run_nodes


def layer(bits: int, outputs: int, blocks: int, block: int, zeros: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(bits * 1000 + blocks)
    codes = torch.randint(0, 2**bits, (outputs, blocks, block), generator=generator)
    zero_points = torch.randint(0, 2**bits, (outputs, blocks), generator=generator)
    return {
        "codes": codes,
        "zero": zero_points if zeros else torch.full_like(zero_points, 2 ** (bits - 1)),
        "weight": pack_codes(codes, bits),
        "scales": torch.rand(outputs, blocks, generator=generator) / 50 - 0.005,
        "zero_points": pack_zero_points(zero_points, bits) if zeros else None,
    }


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("bits", "blocks", "block"), [(4, 3, 32), (4, 2, 16), (8, 3, 32), (2, 2, 64)])
def test_loops_over_codes_agree(bits: int, blocks: int, block: int, zeros: bool) -> None:
    made = layer(bits, 5, blocks, block, zeros)
    inputs = blocks * block - 3
    found = dequantized_weight(made["weight"], made["scales"], made["zero_points"], bits, inputs)
    for row in range(5):
        for column in range(inputs):
            at = column // block
            code, zero = int(made["codes"][row, at, column % block]), int(made["zero"][row, at])
            assert float(found[row, column]) == float((code - zero) * made["scales"][row, at])


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [64, 61])
def test_numbers_are_those_of_onnx_runtime(bits: int, zeros: bool, inputs: int) -> None:
    made = layer(bits, 24, 2, 32, zeros)
    bias = torch.randn(24, generator=torch.Generator().manual_seed(2))
    x = torch.randn(2, 7, inputs, generator=torch.Generator().manual_seed(3))
    names = ["x", "w", "s", "z" if zeros else "", "", "b"]
    sizes = {"K": inputs, "N": 24, "bits": bits, "block_size": 32, "accuracy_level": 0}
    node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **sizes)
    stored = {"w": made["weight"].numpy(), "s": made["scales"].numpy(), "b": bias.numpy()}
    if zeros:
        stored["z"] = made["zero_points"].numpy()
    (found,) = run_nodes([node], {"x": x.numpy()}, stored, ["y"])
    ours = quantized_linear(x, made["weight"], made["scales"], made["zero_points"], bias, bits, 32)
    np.testing.assert_allclose(ours.numpy(), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("inputs", "block"), [(128, 32), (256, 64), (125, 32)])
def test_rounded_inputs_are_those_of_onnx_runtime(bits: int, zeros: bool, inputs: int, block: int) -> None:
    """At accuracy level 4, where the kernel rounds inputs: not in error, but in the same numbers."""
    blocks = -(-inputs // block)
    made = layer(bits, 24, blocks, block, zeros)
    x = torch.randn(2, 7, inputs, generator=torch.Generator().manual_seed(3))
    x[0, 0] = 0
    sizes = {"K": inputs, "N": 24, "bits": bits, "block_size": block, "accuracy_level": 4}
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s", "z" if zeros else ""], ["y"], domain="com.microsoft", **sizes
    )
    stored = {"w": made["weight"].numpy(), "s": made["scales"].numpy()}
    if zeros:
        stored["z"] = made["zero_points"].numpy()
    (found,) = run_nodes([node], {"x": x.numpy()}, stored, ["y"])
    arguments = (x, made["weight"], made["scales"], made["zero_points"], None, bits, block)
    with inputs_rounded():
        ours = quantized_linear(*arguments).numpy()
    exact = quantized_linear(*arguments).numpy()
    assert abs(ours - found).max() < 0.05 * abs(exact - found).max()


def test_gradients_are_those_of_the_dense_layer() -> None:
    made = layer(4, 6, 2, 16, True)
    x, bias = torch.randn(3, 32, requires_grad=True), torch.randn(6, requires_grad=True)
    arguments = (made["weight"], made["scales"], made["zero_points"])
    quantized_linear(x, *arguments, bias, 4, 16).square().sum().backward()
    found = x.grad, bias.grad
    dense = dequantized_weight(*arguments, 4, 32)
    x.grad = bias.grad = None
    torch.nn.functional.linear(x, dense, bias).square().sum().backward()
    torch.testing.assert_close(found, (x.grad, bias.grad))


def test_passes_the_checks_of_torch_library() -> None:
    made = layer(4, 6, 2, 16, True)
    arguments = (torch.randn(3, 32), made["weight"], made["scales"], made["zero_points"], None, 4, 16)
    torch.library.opcheck(torch.ops.regraft.quantized_linear.default, arguments)
