"""quantized_embedding against plain loops and against ONNX Runtime's GatherBlockQuantized."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper

from compiler.ops.quantized_embedding import quantized_embedding
from compiler.quantization.packing import pack_codes, pack_zero_points
from tests.ops.one_node_model import run_nodes

INDICES = torch.tensor([[3, 0, 9], [9, 9, 1]])


def table(bits: int, width: int, blocks: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(bits * 100 + width)
    codes = torch.randint(0, 2**bits, (10, width), generator=generator)
    zeros = torch.randint(0, 2**bits, (10, blocks), generator=generator)
    return codes, torch.rand(10, blocks, generator=generator) - 0.3, zeros


@pytest.mark.parametrize(("width", "block"), [(64, 32), (48, 64), (96, 32), (40, 16)])
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_loops_over_codes_agree(bits: int, width: int, block: int) -> None:
    codes, scales, _ = table(bits, width, -(-width // block))
    found = quantized_embedding(INDICES, pack_codes(codes, bits), scales, None, bits, block)
    assert found.shape == (2, 3, width)
    for place in np.ndindex(2, 3):
        row = int(INDICES[place])
        for column in range(width):
            expected = (int(codes[row, column]) - 2 ** (bits - 1)) * scales[row, column // block]
            assert float(found[place][column]) == float(expected)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("width", "block"), [(64, 32), (48, 64), (96, 32)])
@pytest.mark.parametrize("bits", [4, 8])
def test_numbers_are_those_of_onnx_runtime(bits: int, width: int, block: int, zero_points: bool) -> None:
    codes, scales, zeros = table(bits, width, -(-width // block))
    packed, packed_zeros = pack_codes(codes, bits), pack_zero_points(zeros, bits) if zero_points else None
    ours = quantized_embedding(INDICES, packed, scales, packed_zeros, bits, block)
    names = ["w", "i", "s", *(["z"] if zero_points else [])]
    sizes = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    node = helper.make_node("GatherBlockQuantized", names, ["y"], domain="com.microsoft", **sizes)
    stored = {"w": packed.numpy(), "s": scales.numpy()}
    if packed_zeros is not None:
        stored["z"] = packed_zeros.numpy()
    (found,) = run_nodes([node], {"i": INDICES.numpy()}, stored, ["y"])
    np.testing.assert_array_equal(ours.numpy(), found)


def test_six_bits_take_no_zero_points() -> None:
    codes, scales, zeros = table(6, 64, 2)
    arguments = (INDICES, pack_codes(codes, 6), scales, zeros.to(torch.uint8), 6, 32)
    with pytest.raises(ValueError, match="six bits take no zero points"), torch._subclasses.FakeTensorMode() as mode:
        quantized_embedding(*(mode.from_tensor(one) if isinstance(one, torch.Tensor) else one for one in arguments))


def test_passes_the_checks_of_torch_library() -> None:
    codes, scales, _ = table(6, 64, 2)
    arguments = (INDICES, pack_codes(codes, 6), scales, None, 6, 32)
    torch.library.opcheck(torch.ops.regraft.quantized_embedding.default, arguments)
