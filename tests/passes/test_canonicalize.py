from __future__ import annotations

import pytest
import torch
from rewrite_checks import captured, context_of, rewritten
from torch import Tensor, nn

from compiler.passes.canonicalize import RULES, Canonicalize
from compiler.program import Program, plain_graph_module, tensor_spec

ROUNDING = 1e-6


def after_canonicalize(module: nn.Module, *, tolerance: float = 0.0, **inputs: Tensor) -> str:
    program, _ = rewritten(Canonicalize(), captured(module.eval(), **inputs), tolerance=tolerance)
    return program.text()


def with_weight(*shape: int) -> type[nn.Module]:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(shape))
            self.bias = nn.Parameter(torch.randn(shape[-1]))

    return Module


def test_every_rule_says_what_it_does():
    assert all(rule.__doc__ for rule in RULES)


def test_no_ops_go():
    class NoOps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.dropout(x.to(torch.float32)).contiguous().detach().clone()
            x = x.view(x.shape[0], 6).reshape(-1, 6).expand(x.shape[0], 6)[:, :][0:]
            return torch.relu(x + 0) * 1

    assert after_canonicalize(NoOps(), x=torch.randn(2, 6)) == (
        "input %x : float32[batch, 6]\n%0 = aten.relu(%x) : float32[batch, 6]\nreturn (%0)\n"
    )


def test_a_cast_that_changes_something_stays():
    class Casts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.double().type_as(x) + x.to(torch.int64)

    assert after_canonicalize(Casts(), x=torch.randn(2, 3)) == (
        "input %x : float32[batch, 3]\n"
        "%0 = aten.to.dtype(%x, float64) : float64[batch, 3]\n"
        "%1 = aten.to.dtype(%0, float32) : float32[batch, 3]\n"
        "%2 = aten.to.dtype(%x, int64) : int64[batch, 3]\n"
        "%3 = aten.add.Tensor(%1, %2) : float32[batch, 3]\n"
        "return (%3)\n"
    )


def test_gpt2_product_becomes_linear():
    class Conv1D(with_weight(4, 6)):
        def forward(self, x: Tensor) -> Tensor:
            flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
            return flat.view(x.size(0), x.size(1), 6)

    assert after_canonicalize(Conv1D(), tolerance=ROUNDING, x=torch.randn(2, 3, 4)) == (
        "input %x : float32[batch, 3, 4]\n"
        "%0 = aten.transpose.int(@weight, 0, 1) : float32[6, 4]\n"
        "%1 = aten.linear(%x, %0, @bias) : float32[batch, 3, 6]\n"
        "return (%1)\n"
    )


def test_falcon_product_with_a_transposed_weight_becomes_linear():
    class Falcon(with_weight(6, 4)):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T

    assert after_canonicalize(Falcon(), tolerance=ROUNDING, x=torch.randn(2, 3, 4)) == (
        "input %x : float32[batch, 3, 4]\n%0 = aten.linear(%x, @weight) : float32[batch, 3, 6]\nreturn (%0)\n"
    )


def test_a_bias_that_is_added_joins_its_linear():
    class Added(with_weight(4, 6)):
        def forward(self, x: Tensor) -> Tensor:
            return self.bias + torch.mm(x, self.weight)

    assert after_canonicalize(Added(), tolerance=ROUNDING, x=torch.randn(2, 4)) == (
        "input %x : float32[batch, 4]\n"
        "%0 = aten.transpose.int(@weight, 0, 1) : float32[6, 4]\n"
        "%1 = aten.linear(%x, %0, @bias) : float32[batch, 6]\n"
        "return (%1)\n"
    )


def test_reorderings_of_dims_have_one_form():
    class Reorders(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            back = x.transpose(-1, -2).permute(0, 2, 1)
            return torch.relu(back), torch.relu(x.permute(0, -1, 1)), torch.relu(x.permute(1, 0, 2).permute(2, 1, 0))

    assert after_canonicalize(Reorders(), x=torch.randn(2, 3, 4)) == (
        "input %x : float32[batch, 3, 4]\n"
        "%0 = aten.relu(%x) : float32[batch, 3, 4]\n"
        "%1 = aten.transpose.int(%x, 1, 2) : float32[batch, 4, 3]\n"
        "%2 = aten.relu(%1) : float32[batch, 4, 3]\n"
        "%3 = aten.permute(%x, [2, 0, 1]) : float32[4, batch, 3]\n"
        "%4 = aten.relu(%3) : float32[4, batch, 3]\n"
        "return (%0, %2, %4)\n"
    )


def test_a_key_turned_for_its_product_keeps_its_heads_in_sight():
    class Product(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return q.transpose(1, 2) @ k.permute(0, 2, 3, 1)

    text = after_canonicalize(Product(), q=torch.randn(2, 5, 3, 4), k=torch.randn(2, 7, 3, 4))
    assert text == (
        "input %q : float32[batch, 5, 3, 4]\n"
        "input %k : float32[batch, 7, 3, 4]\n"
        "%0 = aten.transpose.int(%q, 1, 2) : float32[batch, 3, 5, 4]\n"
        "%1 = aten.transpose.int(%k, 1, 2) : float32[batch, 3, 7, 4]\n"
        "%2 = aten.transpose.int(%1, 2, 3) : float32[batch, 3, 4, 7]\n"
        "%3 = aten.matmul(%0, %2) : float32[batch, 3, 5, 7]\n"
        "return (%3)\n"
    )


def test_a_key_turned_with_batch_and_heads_in_one_dim_is_turned_alone():
    class Turned(nn.Module):
        def forward(self, k: Tensor) -> Tensor:
            return k.reshape(-1, 7, 4).transpose(1, 2).reshape(k.shape[0], 3, 4, 7)

    text = after_canonicalize(Turned(), k=torch.randn(2, 3, 7, 4))
    assert text == (
        "input %k : float32[batch, 3, 7, 4]\n%0 = aten.transpose.int(%k, 2, 3) : float32[batch, 3, 4, 7]\nreturn (%0)\n"
    )


def test_a_reshape_across_a_turn_stays():
    class Regrouped(nn.Module):
        def forward(self, k: Tensor) -> Tensor:
            return k.reshape(-1, 6, 4).transpose(1, 2).reshape(k.shape[0], 3, 8, 3)

    assert "aten.reshape" in after_canonicalize(Regrouped(), k=torch.randn(2, 3, 6, 4))


def test_true_masks_drop_out_of_a_conjunction():
    class Masks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_ones((), dtype=torch.bool) & torch.logical_and(x > 0, x < 1)

    assert after_canonicalize(Masks(), x=torch.randn(2, 3)) == (
        "input %x : float32[batch, 3]\n"
        "%0 = aten.gt.Scalar(%x, 0) : bool[batch, 3]\n"
        "%1 = aten.lt.Scalar(%x, 1) : bool[batch, 3]\n"
        "%2 = aten.bitwise_and.Tensor(%0, %1) : bool[batch, 3]\n"
        "return (%2)\n"
    )


def exported(module: nn.Module, x: Tensor) -> Program:
    """A Program straight from torch.export with gradients on, where no_grad regions are still calls of submodules."""
    graph_module = plain_graph_module(torch.export.export(module.eval(), (x,), strict=False))
    value = next(node for node in graph_module.graph.nodes if node.op == "placeholder").meta["val"]
    return Program(graph_module, (tensor_spec("x", value, {}),), (), (x,))


def test_regions_without_gradients_are_inlined():
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("frequencies", torch.rand(3))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                angles = x.detach() * self.frequencies
                cos, sin = angles.cos(), angles.sin()
            return x * cos + sin

    program = exported(Regions(), torch.randn(2, 3))
    assert "wrap_with_set_grad_enabled" in program.text()
    after, result = rewritten(Canonicalize(), program)
    assert "wrap_with_set_grad_enabled" in result.changed
    assert after.text() == (
        "input %x : float32[2, 3]\n"
        "%0 = aten.mul.Tensor(%x, @frequencies) : float32[2, 3]\n"
        "%1 = aten.cos(%0) : float32[2, 3]\n"
        "%2 = aten.sin(%0) : float32[2, 3]\n"
        "%3 = aten.mul.Tensor(%x, %1) : float32[2, 3]\n"
        "%4 = aten.add.Tensor(%3, %2) : float32[2, 3]\n"
        "return (%4)\n"
    )


def test_a_write_that_nothing_else_sees_becomes_functional():
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y += 1
            y.div_(y.sum())
            return y

    text = after_canonicalize(Writes(), x=torch.randn(2, 3))
    assert "aten.add.Tensor" in text
    assert "aten.div.Tensor" in text
    assert "_.Tensor" not in text


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda x: _write_to_view(x), id="through a view"),
        pytest.param(lambda x: _write_to_alias(x), id="to what an alias shows"),
    ],
)
def test_a_write_that_something_else_sees_stays(write):
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return write(x)

    assert "_.Tensor" in after_canonicalize(Writes(), x=torch.randn(2, 3))


def _write_to_view(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0].add_(1)
    return y.clone() + y.view(-1, 3)


def _write_to_alias(x: Tensor) -> Tensor:
    y = x * 2
    before = y.clone()
    alias = y.view(-1, 3)
    alias.mul_(3)
    return before + y


def test_a_copy_that_is_returned_stays_a_copy():
    class Copies(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.clone(), torch.relu(x.clone())

    program, _ = rewritten(Canonicalize(), captured(Copies(), x=torch.randn(2, 3)))
    x = torch.randn(2, 3)
    returned, _ = program.run(x)
    returned.zero_()
    assert x.abs().sum() > 0


def test_strides_that_are_read_stay():
    class Strides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.t().contiguous().as_strided((2,), (1,))

    program = exported(Strides(), torch.randn(2, 3))
    after, _ = rewritten(Canonicalize(), program)
    assert "aten.contiguous" in after.text()


class ScaledProduct(with_weight(4, 6)):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight, alpha=0.5)


class BiasPerRow(with_weight(4, 6)):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class ComputedWeight(with_weight(4, 6)):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.tanh(self.weight)


class WeightOnTheLeft(with_weight(6, 2)):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x


class SlicesPart(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:] + x[:, :-1]


class SumReadTwice(with_weight(6, 4)):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        product = nn.functional.linear(x, self.weight)
        return product, product + nn.functional.pad(self.bias, (0, 2))


class TypePromotion(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0) + torch.zeros((), dtype=torch.int64)


@pytest.mark.parametrize(
    "module", [ScaledProduct, BiasPerRow, ComputedWeight, WeightOnTheLeft, SlicesPart, SumReadTwice, TypePromotion]
)
def test_left_alone(module: type[nn.Module]):
    program = exported(module(), torch.randn(2, 4))
    assert Canonicalize().rewrite(program.copy(), context_of(program)).changed == ()


def test_training_dropout_stays():
    program = captured(nn.Sequential(nn.Linear(3, 3)), x=torch.randn(2, 3))
    node = next(node for node in program.graph.nodes if node.op == "call_function")
    with program.graph.inserting_after(node):
        dropout = program.graph.call_function(torch.ops.aten.dropout.default, (node, 0.5, True))
    dropout.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(dropout, delete_user_cb=lambda user: user is not dropout)
    program.refresh()
    assert Canonicalize().rewrite(program, context_of(program)).changed == ()
    assert "aten.dropout" in program.text()
