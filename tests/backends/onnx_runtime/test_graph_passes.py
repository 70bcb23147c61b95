"""What the graph passes change, and that ONNX Runtime's optimizer leaves it so."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from lowered_program import LoweredProgram, captured
from torch import Tensor, nn
from torch.nn import functional as F

import compiler.ops.group_query_attention
import compiler.ops.quantized_embedding
import compiler.ops.quantized_linear  # noqa: F401  (all register operators)
from compiler.backends.onnx_runtime.graph_passes import GRAPH_PASSES
from compiler.backends.onnx_runtime.translate import onnx_model
from compiler.frontends.torch_export import capture


class _Block(nn.Module):
    """One post-norm attention block with a padding mask; `twist` computes on the heads before they attend."""

    def __init__(self, twist: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.norm = nn.LayerNorm(32)
        self.twist = twist

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        heads = [p(x).view(batch, tokens, 4, 8).transpose(1, 2) for p in (self.query, self.key, self.value)]
        if self.twist:
            heads[0] = heads[0].cos()
        mask = attention_mask[:, None, None, :] > 0
        joined = F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).reshape(batch, tokens, 32)
        return self.norm(self.out(joined) + x)


def _lower(block: _Block, folder: Path) -> LoweredProgram:
    dims = {0: "batch", 1: "sequence"}
    inputs = {"x": torch.randn(2, 6, 32), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    program = capture(block.eval(), inputs, source="block", dynamic={"x": dims, "attention_mask": dims})
    return LoweredProgram(program, folder)


def test_attention_takes_heads_as_they_lie(tmp_path: Path) -> None:
    kernels = _lower(_Block(), tmp_path).lowered.kernels
    assert kernels["Attention"] == 1
    assert "Transpose" not in kernels
    assert kernels["Reshape"] == 2  # of the mask, whose two new dims are made one by one


def test_attention_on_computed_heads_keeps_its_transposes(tmp_path: Path) -> None:
    kernels = _lower(_Block(twist=True), tmp_path).lowered.kernels
    assert kernels["Attention"] == 1
    assert kernels["Transpose"] >= 3


def test_residual_and_norm_stay_two_kernels(tmp_path: Path) -> None:
    kernels = _lower(_Block(), tmp_path).lowered.kernels
    assert kernels["LayerNormalization"] == 1
    assert "SkipLayerNormalization" not in kernels


@pytest.mark.parametrize("twist", [False, True])
def test_numbers_with_padding_at_other_sizes(twist: bool, tmp_path: Path) -> None:
    lowered = _lower(_Block(twist), tmp_path)
    for batch, tokens in ((2, 6), (3, 11), (1, 2)):
        mask = torch.ones(batch, tokens, dtype=torch.int64)
        mask[-1, tokens // 2 :] = 0
        assert lowered.largest_error(torch.randn(batch, tokens, 32), mask) < 1e-5


def test_a_second_run_changes_nothing() -> None:
    model = onnx_model(captured(_Residual(), x=torch.randn(2, 5, 8)))
    for graph_pass in GRAPH_PASSES:
        graph_pass(model.graph)
    assert [graph_pass(model.graph) for graph_pass in GRAPH_PASSES] == [0] * len(GRAPH_PASSES)


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x) + x)


class _Largest(nn.Module):
    """The three largest numbers of every row in order, the first of equal ones first, and where they stand."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, places = x.sort(dim=1, descending=True, stable=True)
        return values[:, :3], places[:, :3]


@pytest.mark.parametrize("matrix", [True, False])
def test_sorting_for_the_first_items_sorts_no_more(matrix: bool, tmp_path: Path) -> None:
    dtype = torch.int64 if matrix else torch.float32  # dim 1 of integer matrices is dynamic
    lowered = LoweredProgram(captured(_Largest(), x=torch.randint(0, 4, (2, 9)).to(dtype)), tmp_path)
    assert lowered.lowered.kernels["TopK"] == 1
    assert "Slice" not in lowered.lowered.kernels
    for width in (9, 4, 2) if matrix else (9,):
        assert lowered.largest_error(torch.randint(0, 4, (2, width)).to(dtype)) == 0


class _Projections(nn.Module):
    """Query, key and value in blocks of 4-bit weights, and attention over buffers."""

    def __init__(self, key_bits: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.bits = (4, key_bits, 4)
        for name, rows, bits in zip("qkv", (64, 32, 32), self.bits, strict=True):
            codes = torch.randint(0, 256, (rows, 2, 16 * bits // 4), generator=generator, dtype=torch.uint8)
            self.register_buffer(f"{name}_codes", codes)
            self.register_buffer(f"{name}_scales", torch.rand(rows, 2, generator=generator) / 16)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, seqlens_k: Tensor) -> Tensor:
        q, k, v = (
            torch.ops.regraft.quantized_linear(
                x, getattr(self, f"{name}_codes"), getattr(self, f"{name}_scales"), None, None, bits, 32, 0
            )
            for name, bits in zip("qkv", self.bits, strict=True)
        )
        settings = (seqlens_k, 5, None, None, None, None, 4, 2, 0.25, 0.0, -1, False)
        output: Tensor = torch.ops.regraft.group_query_attention(q, k, v, key, value, *settings)[0]
        return output


@pytest.mark.parametrize(("key_bits", "products"), [(4, 1), (8, 3)])
def test_projections_become_one_product_where_their_blocks_are_alike(
    key_bits: int, products: int, tmp_path: Path
) -> None:
    module = _Projections(key_bits)
    buffers = torch.zeros(1, 2, 8, 16)
    inputs = {
        "x": torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(1)),
        "key": buffers,
        "value": buffers,
        "seqlens_k": torch.tensor([4]).int(),
    }
    program = capture(module, inputs, source="projections", dynamic={})
    lowered = LoweredProgram(program, tmp_path)
    assert lowered.lowered.kernels["MatMulNBits"] == products
    assert lowered.largest_error(*inputs.values()) < 1e-4


class _Gates(nn.Module):
    """Products of one input in blocks of 4-bit weights, with and without a bias, whose results go separate ways."""

    def __init__(self, rows: tuple[int, ...], biases: bool = True, last_bits: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.biases, self.bits = biases, [4] * (len(rows) - 1) + [last_bits]
        for index, one in enumerate(rows):
            bytes_ = 32 * self.bits[index] // 8
            codes = torch.randint(0, 256, (one, 2, bytes_), generator=generator, dtype=torch.uint8)
            self.register_buffer(f"codes_{index}", codes)
            self.register_buffer(f"scales_{index}", torch.rand(one, 2, generator=generator) / 16)
            self.register_buffer(f"bias_{index}", torch.randn(one, generator=generator))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            torch.ops.regraft.quantized_linear(
                x,
                self.get_buffer(f"codes_{index}"),
                self.get_buffer(f"scales_{index}"),
                None,
                self.get_buffer(f"bias_{index}") if self.biases or index else None,
                bits,
                32,
                0,
            ).tanh()
            for index, bits in enumerate(self.bits)
        )


@pytest.mark.parametrize(
    ("rows", "biases", "last_bits", "kernels"),
    [
        ((3, 9, 64), True, 4, {"MatMulNBits": 1, "Split": 1, "Tanh": 3}),
        ((3, 9, 64, 5), False, 4, {"MatMulNBits": 1, "Split": 1, "Tanh": 4}),
        ((3, 9, 64), True, 8, {"MatMulNBits": 3, "Tanh": 3}),
        ((64, 64), True, 4, {"MatMulNBits": 2, "Tanh": 2}),
    ],
)
def test_three_products_of_one_input_become_one_that_is_split(
    rows: tuple[int, ...], biases: bool, last_bits: int, kernels: dict[str, int], tmp_path: Path
) -> None:
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    lowered = LoweredProgram(captured(_Gates(rows, biases, last_bits), x=x), tmp_path)
    assert lowered.lowered.kernels == kernels
    assert lowered.largest_error(x) < 1e-4


class _Table(nn.Module):
    """A table in blocks of codes that is looked up and, unless `alone`, multiplied with."""

    def __init__(self, alone: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("codes", torch.randint(0, 256, (40, 2, 32), generator=generator, dtype=torch.uint8))
        self.register_buffer("scales", torch.rand(40, 2, generator=generator) / 16)
        self.alone = alone

    def forward(self, input_ids: Tensor) -> Tensor:
        codes, scales = self.get_buffer("codes"), self.get_buffer("scales")
        x: Tensor = torch.ops.regraft.quantized_embedding(input_ids, codes.view(40, 64), scales, None, 8, 32)
        if self.alone:
            return x
        logits: Tensor = torch.ops.regraft.quantized_linear(x, codes, scales, None, None, 8, 32, 0)
        return logits


@pytest.mark.parametrize(("alone", "stored"), [(False, [40, 64]), (True, [40, 2, 32])])
def test_a_table_that_is_multiplied_with_too_is_stored_as_it_is_looked_up(
    alone: bool, stored: list[int], tmp_path: Path
) -> None:
    lowered = LoweredProgram(captured(_Table(alone), input_ids=torch.tensor([[1, 2], [3, 39]])), tmp_path)
    tables = [t for t in onnx.load(tmp_path / "model.onnx").graph.initializer if t.data_type == onnx.TensorProto.UINT8]
    assert [list(table.dims) for table in tables] == [stored]
    assert lowered.lowered.kernels == {"GatherBlockQuantized": 1} | ({} if alone else {"MatMulNBits": 1})
    assert lowered.largest_error(torch.arange(40).reshape(4, 10)) < 1e-4
