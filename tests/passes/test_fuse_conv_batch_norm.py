from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import zoo
from rewrite_checks import captured, rewritten
from torch import Tensor, nn

from compiler.passes.fuse_conv_batch_norm import FuseConvBatchNorm
from compiler.patterns import aten

TOLERANCE = 1e-5


def settled(module: nn.Module) -> nn.Module:
    """The module with statistics and scales as after training, not the ones and zeros it starts with."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor in (part.running_mean, part.weight, part.bias):
                if tensor is not None:
                    tensor.data.normal_(generator=generator)
            if part.running_var is not None:
                part.running_var.uniform_(0.2, 3.0, generator=generator)
    return module.eval()


def chain(*parts: nn.Module) -> nn.Module:
    return settled(nn.Sequential(*parts))


def test_batch_norm_goes_into_the_convolution():
    torch.manual_seed(0)
    program = captured(
        chain(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()), input=torch.randn(2, 3, 8, 8)
    )
    assert program.text() == (
        "input %input_1 : float32[batch, 3, 8, 8]\n"
        "%0 = aten.conv2d(%input_1, @0.weight) : float32[batch, 4, 6, 6]\n"
        "%1 = aten.batch_norm(%0, @1.weight, @1.bias, @1.running_mean, @1.running_var, False, 0.1, 1e-05, False)"
        " : float32[batch, 4, 6, 6]\n"
        "%2 = aten.relu(%1) : float32[batch, 4, 6, 6]\n"
        "return (%2)\n"
    )
    after, result = rewritten(FuseConvBatchNorm(), program, tolerance=TOLERANCE)
    assert after.text() == (
        "input %input_1 : float32[batch, 3, 8, 8]\n"
        "%0 = aten.conv2d(%input_1, @0.weight, @0.bias) : float32[batch, 4, 6, 6]\n"
        "%1 = aten.relu(%0) : float32[batch, 4, 6, 6]\n"
        "return (%1)\n"
    )
    assert result.changed == ("conv2d",)
    assert set(after.weights()) == {"0.weight", "0.bias"}
    assert after.weight("0.bias").requires_grad


@pytest.mark.parametrize(
    ("convolution", "norm", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.BatchNorm1d(6), (4, 11)),
        (nn.Conv2d(4, 6, 3, groups=2, dilation=2, bias=False), nn.BatchNorm2d(6), (4, 9, 7)),
        (nn.Conv2d(4, 4, 3, groups=4, padding="same"), nn.BatchNorm2d(4), (4, 6, 6)),
        (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), (2, 4, 4, 4)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d(6), (4, 5)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2, output_padding=1), nn.BatchNorm2d(6), (4, 5, 5)),
        (nn.ConvTranspose3d(2, 3, 2, bias=False), nn.BatchNorm3d(3), (2, 3, 3, 3)),
        (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), (3, 5, 5)),
        (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.1), (3, 5, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "x".join(map(str, value)),
)
def test_every_kind_of_convolution(convolution: nn.Module, norm: nn.Module, shape: tuple[int, ...]):
    program = captured(chain(convolution, norm), input=torch.randn(2, *shape))
    after, result = rewritten(FuseConvBatchNorm(), program, tolerance=TOLERANCE)
    assert len(result.changed) == 1
    assert not [node for node in after.graph.nodes if node.target is aten.batch_norm.default]


def test_bfloat16():
    program = captured(
        chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).bfloat16(), input=torch.randn(2, 3, 8, 8).bfloat16()
    )
    _, result = rewritten(FuseConvBatchNorm(), program, tolerance=2e-2)
    assert len(result.changed) == 1


class Branches(nn.Module):
    """The convolution's own result is needed as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class SharedConvolution(Branches):
    """One convolution, normalised in one place only."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv(x + 1)


class ComputedWeight(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(nn.functional.conv2d(x, self.conv.weight * 2))


class BatchStatistics(Branches):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Branches, "the convolution has other users"),
        (SharedConvolution, "something else reads the convolution's weight or bias"),
        (ComputedWeight, "a weight is computed, not stored"),
        (BatchStatistics, "batch_norm is in training mode"),
    ],
)
def test_refusals(make: Callable[[], nn.Module], reason: str):
    program = captured(settled(make()), x=torch.randn(2, 3, 5, 5))
    _, result = rewritten(FuseConvBatchNorm(), program)
    assert result.changed == ()
    assert [refusal.reason for refusal in result.refusals] == [reason]


def test_a_norm_behind_something_else_is_no_candidate():
    program = captured(chain(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), input=torch.randn(2, 3, 5, 5))
    _, result = rewritten(FuseConvBatchNorm(), program)
    assert (result.changed, result.refusals) == ((), ())


@pytest.mark.slow
def test_every_batch_norm_of_resnet():
    program = zoo.captured("resnet")
    norms = sum(node.target is aten.batch_norm.default for node in program.graph.nodes)
    after, result = rewritten(FuseConvBatchNorm(), program, tolerance=TOLERANCE)
    assert norms == len(result.changed) > 0
    assert not [name for name in after.weights() if "running_" in name]
