from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ops.rms_norm import rms_norm


@pytest.mark.parametrize("shape", [(4,), (3, 8), (2, 3, 16), (2, 1, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_torch(shape: tuple[int, ...], dtype: torch.dtype):
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(shape[-1], dtype=dtype)
    expected = torch.nn.functional.rms_norm(x, (shape[-1],), weight, 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=20)
@given(rows=st.integers(1, 4), width=st.integers(1, 9), epsilon=st.sampled_from([1e-12, 1e-5, 0.5]))
def test_against_loops(rows: int, width: int, epsilon: float):
    x, weight = torch.randn(rows, width, dtype=torch.float64), torch.randn(width, dtype=torch.float64)
    found = rms_norm(x, weight, epsilon)
    for row in range(rows):
        mean_square = sum(float(value) ** 2 for value in x[row]) / width
        for column in range(width):
            expected = float(x[row, column]) / math.sqrt(mean_square + epsilon) * float(weight[column])
            assert float(found[row, column]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype):
    x, weight = torch.randn(5, 64).to(dtype) * 200, torch.randn(64).to(dtype)
    expected = rms_norm(x.double(), weight.double(), 1e-5).to(dtype)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_gradients():
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, weight))


def test_gradients_of_one_side_only():
    x, weight = torch.randn(3, 5), torch.randn(5, requires_grad=True)
    rms_norm(x, weight, 1e-5).sum().backward()
    expected = torch.randn(5, requires_grad=True)
    expected.data.copy_(weight.data)
    torch.nn.functional.rms_norm(x, (5,), expected, 1e-5).sum().backward()
    torch.testing.assert_close(weight.grad, expected.grad)


@pytest.mark.slow
def test_schema_fake_and_autograd_agree():
    x, weight = torch.randn(2, 3, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    torch.library.opcheck(torch.ops.regraft.rms_norm.default, (x, weight, 1e-5))


def test_a_result_is_contiguous_whatever_x_is():
    x = torch.randn(4, 3, 2).transpose(0, 2)
    assert rms_norm(x, torch.ones(4), 1e-5).is_contiguous()


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(1, 4)])
def test_export_refuses_a_weight_that_does_not_fit(weight: torch.Tensor):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match="rms_norm needs weight"):
        rms_norm(mode.from_tensor(torch.ones(2, 4)), mode.from_tensor(weight), 1e-5)
