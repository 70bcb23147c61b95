"""Operators one by one against eager, at the captured sizes and at others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lowered_program import LoweredProgram, captured
from torch import Tensor, nn
from torch.nn import functional as F

UNARY: dict[str, Callable[[Tensor], Any]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softplus": lambda x: F.softplus(x, beta=2.0),
    "elu": F.elu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "relu6": lambda x: F.relu6(x * 9),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
    "integer_hardtanh": lambda x: F.hardtanh((x * 10).long(), -2, 3),
    "logsigmoid": lambda x: F.logsigmoid(x * 50),
    "rrelu": F.rrelu,
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 1),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "floor_divide": lambda x: (x * 10).floor_divide(3),
    "integer_floor_divide": lambda x: (x * 10).long() // 3,
    "remainder": lambda x: (x * 10).remainder(3),
    "integer_remainder": lambda x: (x * 10).long() % 3,
    "truncated": lambda x: torch.div(x * 10, 3, rounding_mode="trunc"),
    "power": lambda x: (x.abs() + 0.1) ** 1.5,
    "promoted": lambda x: (x > 0) * 2 + x.long(),
    "compared": lambda x: (x > 0.1) & (x.long() >= -0.5) | (x != x),
    "where": lambda x: torch.where(x > 0, x, -1.0),
    "masked_fill": lambda x: x.masked_fill(x < 0, 3.0),
    "mean": lambda x: x.mean(-1, keepdim=True),
    "sum_all": lambda x: x.sum(),
    "variance": lambda x: x.var(-1),
    "norm": lambda x: F.normalize(x, dim=-1),
    "norm_3": lambda x: torch.linalg.vector_norm(x, 3, -1),
    "any": lambda x: (x > 1).any(-1),
    "all": lambda x: (x > -9).all(-1, keepdim=True),
    "argmax": lambda x: x.argmax(-1),
    "max_dim": lambda x: x.max(-1),
    "topk": lambda x: x.topk(3),
    "sort": lambda x: x.sort(-1, descending=True),
    "cumsum": lambda x: x.cumsum(1),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "flatten": lambda x: x.flatten(1),
    "joined_dims": lambda x: x.reshape(x.shape[0] * 4, 6),
    "split": lambda x: x.split(4, -1)[1],
    "chunk": lambda x: torch.cat(x.chunk(3, -1)[::-1], -1),
    "unbind": lambda x: torch.stack(x.unbind(1), 0),
    "slice": lambda x: x[:, 1:-1, ::2],
    "select": lambda x: x[:, -1],
    "flip": lambda x: x.flip(1, 2),
    "roll": lambda x: x.roll((1, -2), (1, 2)),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "reflect": lambda x: F.pad(x, (1, 2), mode="reflect"),
    "tile": lambda x: x.repeat(2, 1, 3),
    "repeat_interleave": lambda x: x.repeat_interleave(3, 1),
    "triangle": lambda x: x.tril(1) + x.triu(-1),
    "diff": lambda x: x.diff(dim=1, prepend=x[:, :1]),
    "movedim": lambda x: x.movedim(0, 2),
    "expand": lambda x: x[:, :1].expand(-1, 5, -1),
    "range": lambda x: torch.arange(1, x.shape[0] * 2, 2),
    "sizes": lambda x: x.new_zeros(x.shape[0] // 2 + 1, x.shape[0] % 3 + 1) + x.shape[0],
    "full_like": lambda x: torch.full_like(x, 2) + torch.ones_like(x),
    "advanced_index": lambda x: x[torch.arange(x.shape[0])[:, None], torch.tensor([0, 2])],
    "advanced_index_inside": lambda x: x[:, torch.tensor([[0, 1]]), torch.tensor([[2], [3]])],
    "gather": lambda x: x.gather(1, (x * 10).long().abs() % 4),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, (x * 10).long().abs() % 4, 1.0),
    "masked_scatter": lambda x: x.masked_scatter(x > 0, x * 2),
    "in_place": lambda x: x.exp().add_(1).mul_(x),
    "glu": lambda x: F.glu(x, -1),
    "decomposed": lambda x: torch.logit(x.sigmoid()) + torch.addcmul(x, x, x, value=0.5),
}


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("name", UNARY)
def test_function_of_one_tensor(name: str, tmp_path: Path) -> None:
    lowered = LoweredProgram(captured(_Function(UNARY[name]), x=torch.randn(3, 4, 6)), tmp_path)
    for batch in (3, 5, 1):
        x = torch.randn(batch, 4, 6, generator=torch.Generator().manual_seed(batch))
        assert lowered.largest_error(x) < 1e-5


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3, stride=2, padding=1, groups=2), (6, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding="same", dilation=2), (3, 8, 8)),
    "deconvolution": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 5, 5)),
    "layer_norm": (lambda: nn.LayerNorm((4, 6)), (4, 6)),
    "layer_norm_plain": (lambda: nn.LayerNorm(6, elementwise_affine=False), (4, 6)),
    "rms_norm": (lambda: nn.RMSNorm(6), (4, 6)),
    "batch_norm": (lambda: nn.BatchNorm2d(3), (3, 5, 5)),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (4, 5, 5)),
    "max_pool": (lambda: nn.MaxPool2d(3, 2, 1), (3, 9, 9)),
    "average_pool": (lambda: nn.AvgPool2d(2), (3, 8, 8)),
    "adaptive_pool": (lambda: nn.AdaptiveAvgPool2d((2, 4)), (3, 8, 8)),
    "pixel_shuffle": (lambda: nn.PixelShuffle(2), (4, 3, 3)),
}


@pytest.mark.parametrize("name", MODULES)
def test_module(name: str, tmp_path: Path) -> None:
    build, shape = MODULES[name]
    torch.manual_seed(0)
    lowered = LoweredProgram(captured(build(), x=torch.randn(2, *shape)), tmp_path)
    for batch in (2, 3):
        assert lowered.largest_error(torch.randn(batch, *shape)) < 1e-5
