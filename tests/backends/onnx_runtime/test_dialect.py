"""Each regraft operator against its reference, and that it runs as the kernel it is named after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lowered_program import LoweredProgram, captured
from torch import Tensor, nn

import compiler.ops.attention
import compiler.ops.causal_conv
import compiler.ops.dynamic_quantized_linear
import compiler.ops.linear_attention
import compiler.ops.quantized_embedding
import compiler.ops.quantized_linear
import compiler.ops.rms_norm
import compiler.ops.rotary_embedding  # noqa: F401
from compiler.backends.onnx_runtime.kernels import require_real_kernels
from compiler.errors import CompilerError

ops = torch.ops.regraft


class _WithTensors(nn.Module):
    def __init__(self, function: Callable[..., Tensor], **tensors: Tensor | None) -> None:
        super().__init__()
        self.function = function
        self.names = list(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(getattr(self, name) for name in self.names))


def _bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("biased", [True, False])
def test_dynamic_quantized_linear(biased: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, scales = torch.randint(-127, 128, (32, 24), dtype=torch.int8), torch.rand(24) * 0.01
    bias = torch.randn(24) if biased else None
    module = _WithTensors(ops.dynamic_quantized_linear, weight=weight, scales=scales, bias=bias)
    lowered = LoweredProgram(captured(module, x=torch.randn(2, 5, 32)), tmp_path)
    assert lowered.lowered.kernels == {"DynamicQuantizeMatMul": 1}
    for batch in (2, 7):
        assert lowered.largest_error(torch.randn(batch, 5, 32) * 3) < 1e-5


def test_products_of_one_value_share_its_quantization(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, scales = torch.randint(-127, 128, (32, 24), dtype=torch.int8), torch.rand(24) * 0.01

    def both(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        first = ops.dynamic_quantized_linear(x, weight, scales, None)
        return first + ops.dynamic_quantized_linear(x, weight.flip(0), scales, None)

    lowered = LoweredProgram(
        captured(_WithTensors(both, weight=weight, scales=scales), x=torch.randn(2, 5, 32)), tmp_path
    )
    assert lowered.lowered.kernels["DynamicQuantizeLinear"] == 1
    assert lowered.lowered.kernels["MatMulIntegerToFloat"] == 2
    assert lowered.largest_error(torch.randn(3, 5, 32)) < 1e-5


@pytest.mark.parametrize(("bits", "block_size"), [(8, 32), (4, 32), (4, 128), (2, 64)])
@pytest.mark.parametrize("zeros", [True, False])
def test_quantized_linear(bits: int, block_size: int, zeros: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = 128 // block_size
    zero_points = _bytes(24, -(-blocks * bits // 8)) if zeros else None

    def product(x: Tensor, weight: Tensor, scales: Tensor, zero_points: Tensor | None, bias: Tensor) -> Tensor:
        return ops.quantized_linear(x, weight, scales, zero_points, bias, bits, block_size)

    module = _WithTensors(
        product,
        weight=_bytes(24, blocks, block_size * bits // 8),
        scales=torch.rand(24, blocks) * 2.0**-bits,
        zero_points=zero_points,
        bias=torch.randn(24),
    )
    lowered = LoweredProgram(captured(module, x=torch.randn(2, 5, 128)), tmp_path)
    assert lowered.lowered.kernels == {"MatMulNBits": 1}
    x = torch.randn(3, 5, 128)
    expected = lowered.program.run(x)[0].numpy()
    found = lowered.run(x)[0]
    # The kernel rounds x to 8 bits in blocks: an error of at most half a step of x a product.
    step = float(x.abs().max()) / 127
    assert abs(expected - found).max() < 0.5 * step * 128 * 2.0**-bits * 2**bits * 0.25


@pytest.mark.parametrize(("bits", "block_size"), [(8, 64), (8, 32), (6, 64), (4, 32), (2, 64)])
def test_quantized_embedding(bits: int, block_size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)

    def rows(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        return ops.quantized_embedding(x, weight, scales, None, bits, block_size)

    module = _WithTensors(rows, weight=_bytes(50, 64 * bits // 8), scales=torch.rand(50, 64 // block_size))
    lowered = LoweredProgram(captured(module, x=torch.zeros(2, 3, dtype=torch.int64)), tmp_path)
    if bits != 6:
        assert lowered.lowered.kernels == {"GatherBlockQuantized": 1}
    assert lowered.largest_error(torch.arange(50).reshape(5, 10)) == 0.0


def test_six_bits_take_six_bits_in_the_file(tmp_path: Path) -> None:
    def rows(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        return ops.quantized_embedding(x, weight, scales, None, 6, 64)

    module = _WithTensors(rows, weight=_bytes(4000, 48), scales=torch.rand(4000, 1))
    lowered = LoweredProgram(captured(module, x=torch.zeros(2, 3, dtype=torch.int64)), tmp_path)
    assert (tmp_path / lowered.lowered.entry).stat().st_size < 4000 * (48 + 4) + 4096


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("masking", ["none", "causal", "bool", "float", "row"])
def test_attention(kv_heads: int, masking: str, tmp_path: Path) -> None:
    torch.manual_seed(0)

    def attend(x: Tensor) -> Tensor:
        query = x
        key = value = x[:, :kv_heads] * 0.5
        positions = torch.arange(x.shape[2])
        masks = {
            "bool": positions[None, None, :, None] + 1 >= positions[None, None, None, :],
            "float": (positions[:, None] - positions[None, :]).float().abs() * -0.1,
            "row": (positions < 4)[None, None, None, :],
        }
        return ops.attention(query, key, value, masks.get(masking), masking == "causal", 0.3, 0.0)

    lowered = LoweredProgram(captured(_WithTensors(attend), x=torch.randn(2, 4, 6, 8)), tmp_path)
    assert lowered.lowered.kernels["Attention"] == 1
    assert lowered.largest_error(torch.randn(3, 4, 6, 8)) < 1e-5


@pytest.mark.parametrize("masked", [True, False])
def test_softcap_is_applied_before_the_mask(masked: bool, tmp_path: Path) -> None:
    def attend(x: Tensor) -> Tensor:
        mask = (torch.arange(x.shape[2]) < 4)[None, None, None, :] if masked else None
        return ops.attention(x, x, x, mask, False, 1.0, 2.0)

    lowered = LoweredProgram(captured(_WithTensors(attend), x=torch.randn(2, 4, 6, 8)), tmp_path)
    assert lowered.largest_error(3 * torch.randn(3, 4, 6, 8)) < 1e-5


def test_rms_norm(tmp_path: Path) -> None:
    module = _WithTensors(lambda x, weight: ops.rms_norm(x, weight, 1e-6), weight=torch.rand(16))
    lowered = LoweredProgram(captured(module, x=torch.randn(2, 5, 16)), tmp_path)
    assert lowered.largest_error(torch.randn(3, 5, 16)) < 1e-6


@pytest.mark.parametrize("rotary_dim", [4, 8])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.float16, 1e-2), (torch.bfloat16, 5e-2), (torch.float64, 1e-12)],
)
def test_rotary_embedding(
    rotary_dim: int, interleaved: bool, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    def turned(x: Tensor) -> Tensor:
        angles = torch.arange(6)[None, :, None] * torch.arange(1, 1 + rotary_dim // 2)  # [1, tokens, rotary_dim / 2]
        cos, sin = angles.to(torch.float64).cos().to(dtype), angles.to(torch.float64).sin().to(dtype)
        there = ops.rotary_embedding(x.to(dtype), cos, sin, interleaved)
        row_angles = (x[:, 0, :, :1] * angles).to(torch.float64)  # [batch, tokens, rotary_dim / 2]
        again = ops.rotary_embedding(there, row_angles.cos().to(dtype), row_angles.sin().to(dtype), interleaved)
        return again.to(torch.float64) if dtype == torch.float64 else again.float()

    lowered = LoweredProgram(captured(_WithTensors(turned), x=torch.randn(2, 4, 6, 8, dtype=torch.float64)), tmp_path)
    assert lowered.lowered.kernels.get("RotaryEmbedding", 0) == (0 if dtype == torch.float64 else 2)
    for batch in (1, 2, 3):
        assert lowered.largest_error(torch.randn(batch, 4, 6, 8, dtype=torch.float64)) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_attention(dtype: torch.dtype, tmp_path: Path) -> None:
    def attend(x: Tensor) -> Tensor:
        decay, beta, past = -x[..., :2].abs(), x[..., 2:4].sigmoid(), torch.ones(x.shape[0], 2, 3, 6)
        given = [one.to(dtype) for one in (x, 0.3 * x[..., :6], x, decay, beta)]
        output, state = ops.linear_attention(*given[:3], past, *given[3:], 4, 2, "gated_delta", 0.0)
        return output.float().sum(1) + state.sum((1, 2)).repeat(1, 4)

    lowered = LoweredProgram(captured(_WithTensors(attend), x=torch.randn(2, 5, 12)), tmp_path)
    assert lowered.lowered.kernels["LinearAttention"] == 1
    assert lowered.largest_error(torch.randn(3, 5, 12)) < (1e-4 if dtype == torch.float32 else 0.1)


def test_causal_conv(tmp_path: Path) -> None:
    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        output, state = ops.causal_conv(x, weight, None, x[..., :2], "silu")
        return output + state.sum(-1, keepdim=True)

    module = _WithTensors(convolve, weight=torch.randn(4, 1, 3))
    lowered = LoweredProgram(captured(module, x=torch.randn(2, 4, 6)), tmp_path)
    assert lowered.lowered.kernels["CausalConvWithState"] == 1
    assert lowered.largest_error(torch.randn(3, 4, 6)) < 1e-5


def test_a_simulated_product_is_refused() -> None:
    weight, scales = torch.ones(32, 24, dtype=torch.int8), torch.ones(24)
    module = _WithTensors(lambda *a: ops.dynamic_quantized_linear(*a, None), weight=weight, scales=scales)
    program = captured(module, x=torch.randn(2, 32))
    with pytest.raises(CompilerError, match=r"1 of 1 regraft\.dynamic_quantized_linear\.default did not become"):
        require_real_kernels(program, {"MatMul": 1})
    with pytest.raises(CompilerError, match="dequantized when the model runs"):
        require_real_kernels(program, {"DynamicQuantizeMatMul": 1, "DequantizeLinear": 1})
