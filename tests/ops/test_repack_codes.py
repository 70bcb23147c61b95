"""repack_codes: the codes stay, in Python and in ONNX Runtime, and a session has done the work when it is open."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lowered_program import LoweredProgram, captured
from torch import Tensor, nn

from compiler.ops.repack_codes import repack_codes
from compiler.quantization.packing import pack_codes, unpack_codes

PAIRS = [(1, 8), (2, 4), (3, 4), (3, 8), (4, 8), (5, 6), (6, 8), (7, 7), (8, 2), (8, 3), (6, 3)]


def codes(bits: int) -> Tensor:
    return torch.randint(0, 2**bits, (3, 2, 16), generator=torch.Generator().manual_seed(bits))


@pytest.mark.parametrize(("bits", "to"), PAIRS)
def test_the_codes_are_the_same(bits: int, to: int) -> None:
    packed = repack_codes(pack_codes(codes(bits), bits), bits, to)
    assert packed.shape == (3, 2, 2 * to)
    assert torch.equal(unpack_codes(packed, to).long(), codes(bits) % 2**to)


@pytest.mark.parametrize(("bits", "to"), PAIRS)
def test_onnx_runtime_gives_the_same_bytes(bits: int, to: int, tmp_path: Path) -> None:
    class Chosen(nn.Module):
        """Rows of the packed bytes, put into other bits: of inputs, so that it is done at run time."""

        def forward(self, x: Tensor) -> Tensor:
            return repack_codes(x, bits, to)

    lowered = LoweredProgram(captured(Chosen(), x=pack_codes(codes(bits), bits)), tmp_path)
    assert lowered.largest_error(pack_codes(codes(bits).flip(0), bits)) == 0


def test_what_depends_on_no_input_is_done_when_the_file_is_opened(tmp_path: Path) -> None:
    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", pack_codes(codes(3), 3))

        def forward(self, x: Tensor) -> Tensor:
            return x + repack_codes(self.weight, 3, 8).float()

    lowered = LoweredProgram(captured(Stored(), x=torch.randn(3, 2, 16)), tmp_path)
    assert lowered.lowered.kernels == {"Add": 1}
    assert lowered.largest_error(torch.randn(3, 2, 16)) == 0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fill whole bytes"):
        repack_codes(torch.zeros(2, 1, dtype=torch.uint8), 8, 3)
    with pytest.raises(ValueError, match="packed in bytes"), torch.device("meta"):
        repack_codes(torch.zeros(2, 8), 8, 4)
