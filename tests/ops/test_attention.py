from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compiler.ops.attention import attention, attention_reference

HEADS, KV_HEADS, TOKENS, KEYS, HEAD_DIM, VALUE_DIM = 4, 2, 5, 7, 6, 3
SCALE = 0.3


def tensors(dtype: torch.dtype = torch.float64, keys: int = KEYS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, HEADS, TOKENS, HEAD_DIM), (2, KV_HEADS, keys, HEAD_DIM), (2, KV_HEADS, keys, VALUE_DIM))
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return query, key, value


def boolean_mask() -> Tensor:
    mask = torch.rand(2, 1, TOKENS, KEYS, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[0, 0, 2] = False  # a row that may attend to nothing
    return mask


def additive_mask() -> Tensor:
    mask = torch.randn(1, HEADS, TOKENS, KEYS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mask[0, 1, 0, :3] = -math.inf
    return mask


def mask_of_keys() -> Tensor:
    return torch.arange(KEYS) != 3


MASKS = {"none": lambda: None, "boolean": boolean_mask, "additive": additive_mask, "keys": mask_of_keys}


def by_loops(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float, softcap: float
) -> Tensor:
    """One number at a time, from the words of the docstring."""
    batch, heads, tokens, _ = query.shape
    keys, value_dim = value.shape[2:]
    result = torch.zeros(batch, heads, tokens, value_dim, dtype=torch.float64)
    wide = None if mask is None else mask.expand(batch, heads, tokens, keys)
    for b in range(batch):
        for h in range(heads):
            shared = h // (heads // key.shape[1])
            for i in range(tokens):
                weights = []
                for j in range(keys):
                    score = float(torch.dot(query[b, h, i], key[b, shared, j])) * scale
                    score = softcap * math.tanh(score / softcap) if softcap else score
                    allowed = not (is_causal and j > i)
                    if wide is not None and wide.dtype == torch.bool:
                        allowed = allowed and bool(wide[b, h, i, j])
                    elif wide is not None:
                        score += float(wide[b, h, i, j])
                    weights.append(math.exp(score) if allowed else 0.0)
                total = sum(weights)
                for j, weight in enumerate(weights):
                    if total > 0:
                        result[b, h, i] += weight / total * value[b, shared, j]
    return result


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_against_loops(mask: str, is_causal: bool, softcap: float):
    arguments = (*tensors(), MASKS[mask](), is_causal, SCALE, softcap)
    expected = by_loops(*arguments)
    torch.testing.assert_close(attention_reference(*arguments), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(attention(*arguments), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_lower_precisions(dtype: torch.dtype, tolerance: float):
    query, key, value = tensors(dtype)
    expected = by_loops(query.double(), key.double(), value.double(), None, False, SCALE, 0.0)
    for found in (
        attention(query, key, value, None, False, SCALE, 0.0),
        attention_reference(query, key, value, None, False, SCALE, 0.0),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_may_attend_to_nothing_give_zeros(dtype: torch.dtype):
    found = attention(*tensors(dtype), boolean_mask(), False, SCALE, 0.0)
    assert torch.equal(found[0, :, 2], torch.zeros(HEADS, VALUE_DIM, dtype=dtype))
    assert found.isfinite().all()


@pytest.mark.parametrize("mask", ["none", "boolean", "additive"])
def test_against_aten(mask: str):
    query, key, value = tensors()
    repeated = [tensor.repeat_interleave(HEADS // KV_HEADS, dim=1) for tensor in (key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(query, *repeated, MASKS[mask](), scale=SCALE)
    torch.testing.assert_close(attention(query, key, value, MASKS[mask](), False, SCALE, 0.0), expected)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_gradients_against_finite_differences(mask: str, softcap: float):
    leaves = [tensor.requires_grad_() for tensor in tensors()]
    chosen = MASKS[mask]()
    if chosen is not None and chosen.is_floating_point():
        chosen = chosen.clamp(min=-2).requires_grad_()
        leaves.append(chosen)

    def run(*tensors_: Tensor) -> Tensor:
        query, key, value, *added = tensors_
        return attention(query, key, value, added[0] if added else chosen, False, SCALE, softcap)

    assert torch.autograd.gradcheck(run, tuple(leaves), fast_mode=True)


def test_the_op_is_well_registered():
    for mask in (None, boolean_mask()):
        torch.library.opcheck(attention, (*tensors(), mask, False, SCALE, 0.0))


def test_it_exports_with_symbolic_sizes():
    class Module(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return torch.ops.regraft.attention(query, key, value, None, True, SCALE, 0.0)

    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    query, key, value = tensors(keys=TOKENS)
    exported = torch.export.export(Module(), (query, key, value), dynamic_shapes=(dynamic,) * 3)
    larger = [torch.cat([tensor, tensor], dim=2) for tensor in (query, key, value)]
    torch.testing.assert_close(exported.module()(*larger), attention_reference(*larger, None, True, SCALE, 0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[:, :3], k, v, None), "3 query heads cannot share 2 key heads"),
        (lambda q, k, v: (q[..., :2], k, v, None), "do not fit"),
        (lambda q, k, v: (q, k, v[:, :, 1:], None), "do not fit"),
        (lambda q, k, v: (q, k, v, boolean_mask().to(torch.int64)), "a mask is boolean or"),
    ],
)
def test_shapes_that_do_not_fit(change, message: str):
    with pytest.raises(ValueError, match=message):
        attention(*change(*tensors()), False, SCALE, 0.0)
