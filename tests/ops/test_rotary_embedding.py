from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compiler.ops.rotary_embedding import rotary_embedding

BATCH, HEADS, TOKENS, HEAD_DIM = 2, 3, 5, 8


def angles(rows: int, rotary_dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """[rows, tokens, rotary_dim / 2]"""
    return torch.randn(rows, TOKENS, rotary_dim // 2, dtype=dtype) * 3


def heads(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(BATCH, HEADS, TOKENS, HEAD_DIM, dtype=dtype)


@pytest.mark.parametrize("rows", [1, BATCH])
@pytest.mark.parametrize("rotary_dim", [2, 6, HEAD_DIM])
@pytest.mark.parametrize("interleaved", [False, True])
def test_against_loops(rows: int, rotary_dim: int, interleaved: bool):
    x, angle = heads(), angles(rows, rotary_dim)
    found = rotary_embedding(x, angle.cos(), angle.sin(), interleaved)
    expected = x.clone()
    for row in range(BATCH):
        for head in range(HEADS):
            for token in range(TOKENS):
                for pair in range(rotary_dim // 2):
                    a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + rotary_dim // 2)
                    turn = float(angle[row % rows, token, pair])
                    real, imaginary = float(x[row, head, token, a]), float(x[row, head, token, b])
                    expected[row, head, token, a] = real * math.cos(turn) - imaginary * math.sin(turn)
                    expected[row, head, token, b] = imaginary * math.cos(turn) + real * math.sin(turn)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_against_transformers_halves():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    query, key, angle = heads(), heads()[:, :1], angles(BATCH, HEAD_DIM)
    both = torch.cat((angle, angle), dim=-1)
    expected = apply_rotary_pos_emb(query, key, both.cos(), both.sin())
    found = [rotary_embedding(x, angle.cos(), angle.sin(), False) for x in (query, key)]
    torch.testing.assert_close(found, list(expected), rtol=1e-12, atol=1e-12)


def test_against_transformers_part_of_a_head():
    from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

    query, key, angle = heads(), heads(), angles(BATCH, 4)
    both = torch.cat((angle, angle), dim=-1)
    expected = apply_rotary_pos_emb(query, key, both.cos(), both.sin())
    found = [rotary_embedding(x, angle.cos(), angle.sin(), False) for x in (query, key)]
    torch.testing.assert_close(found, list(expected), rtol=1e-12, atol=1e-12)


def test_against_transformers_neighbours():
    from transformers.models.glm.modeling_glm import apply_rotary_pos_emb

    query, key, angle = heads(), heads(), angles(BATCH, 4)
    both = torch.cat((angle, angle), dim=-1)
    expected = apply_rotary_pos_emb(query, key, both.cos(), both.sin())
    found = [rotary_embedding(x, angle.cos(), angle.sin(), True) for x in (query, key)]
    torch.testing.assert_close(found, list(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype):
    x, angle = heads(dtype), angles(1, HEAD_DIM)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    expected = rotary_embedding(x.double(), cos.double(), sin.double(), False).to(dtype)
    torch.testing.assert_close(rotary_embedding(x, cos, sin, False), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients(interleaved: bool):
    given = [item.requires_grad_() for item in (heads(), angles(1, 4).cos(), angles(1, 4).sin())]
    assert torch.autograd.gradcheck(lambda *items: rotary_embedding(*items, interleaved), given)


@pytest.mark.slow
def test_schema_fake_and_autograd_agree():
    given = [item.float().requires_grad_() for item in (heads(), angles(1, 4).cos(), angles(1, 4).sin())]
    torch.library.opcheck(torch.ops.regraft.rotary_embedding.default, (*given, True))


def test_a_result_is_contiguous_whatever_x_is():
    x = torch.randn(BATCH, TOKENS, HEADS, HEAD_DIM).transpose(1, 2)
    cos = torch.ones(1, TOKENS, HEAD_DIM // 2)
    assert rotary_embedding(x, cos, cos, False).is_contiguous()


@pytest.mark.parametrize(
    ("x", "cos", "sin"),
    [
        ((3, 5, 8), (1, 5, 4), (1, 5, 4)),
        ((2, 3, 5, 8), (5, 4), (5, 4)),
        ((2, 3, 5, 8), (1, 5, 4), (1, 5, 2)),
        ((2, 3, 5, 8), (1, 5, 8), (1, 5, 8)),
    ],
    ids=["x without heads", "angles without a batch", "cos and sin differ", "an angle for every number"],
)
def test_export_refuses_shapes_that_do_not_fit(x: tuple[int, ...], cos: tuple[int, ...], sin: tuple[int, ...]):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match="rotary_embedding needs"):
        rotary_embedding(*(mode.from_tensor(torch.ones(shape)) for shape in (x, cos, sin)), False)
