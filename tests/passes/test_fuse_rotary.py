from __future__ import annotations

import pytest
import torch
import zoo
from rewrite_checks import captured, rewritten
from torch import Tensor, nn

from compiler.passes.canonicalize import Canonicalize
from compiler.passes.fuse_rotary import FuseRotary
from compiler.program import Program

HEADS, TOKENS, HEAD_DIM = 2, 3, 8
TOLERANCE = 1e-6


class Rotary(nn.Module):
    """As transformers' llama writes it: angles [1, tokens, width] for x [batch, heads, tokens, head_dim]."""

    width = HEAD_DIM

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.rand(self.width // 2) + 0.1)

    def angles(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[2], device=x.device)
        return positions[None, :, None].float() * self.frequencies

    def cos_sin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        angles = self.angles(x)
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(x.dtype).unsqueeze(1), both.sin().to(x.dtype).unsqueeze(1)

    def rotate_half(self, x: Tensor) -> Tensor:
        middle = x.shape[-1] // 2
        return torch.cat((-x[..., middle:], x[..., :middle]), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.cos_sin(x)
        return (x * cos) + (self.rotate_half(x) * sin)


class OperandsInAnotherOrder(Rotary):
    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.cos_sin(x)
        return sin * self.rotate_half(x) + cos * x


class Chunks(Rotary):
    def rotate_half(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((-second, first), dim=-1)


class NegativeStart(Rotary):
    def rotate_half(self, x: Tensor) -> Tensor:
        return torch.cat((-x[..., -4:], x[..., :4]), dim=-1)


class Scaled(Rotary):
    """As YaRN scales cosines and sines."""

    def cos_sin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().cos_sin(x)
        return cos * 1.25, sin * 1.25


class RepeatedAngles(Rotary):
    def cos_sin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = self.angles(x).repeat(1, 1, 2)
        return both.cos().to(x.dtype)[:, None], both.sin().to(x.dtype)[:, None]


class Tables(Rotary):
    """Cosines and sines are stored for the longest sequence."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(16)[:, None] * self.frequencies
        both = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", both.cos())
        self.register_buffer("sin", both.sin())

    def cos_sin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        positions = torch.arange(x.shape[2])
        return self.cos[positions].to(x.dtype), self.sin[positions].to(x.dtype)


class StoredFrequenciesTwice(Rotary):
    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Parameter(torch.cat((self.frequencies, self.frequencies)))

    def cos_sin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.arange(x.shape[2])[:, None].float() * self.twice
        return both.cos().to(x.dtype), both.sin().to(x.dtype)


class PartOfAHead(Rotary):
    width = 4

    def forward(self, x: Tensor) -> Tensor:
        turned, kept = x[..., : self.width], x[..., self.width :]
        return torch.cat((super().forward(turned), kept), dim=-1)


class PartOfAHeadSplit(PartOfAHead):
    def forward(self, x: Tensor) -> Tensor:
        turned, kept = x.split([self.width, HEAD_DIM - self.width], dim=-1)
        return torch.cat((Rotary.forward(self, turned), kept), dim=-1)


class TheBackOfAHead(PartOfAHead):
    """What is turned stands behind what is not: no partial embedding of the whole head."""

    def forward(self, x: Tensor) -> Tensor:
        kept, turned = x[..., : self.width], x[..., self.width :]
        return torch.cat((kept, Rotary.forward(self, turned)), dim=-1)


class Neighbours(Rotary):
    def cos_sin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.repeat_interleave(self.angles(x), 2, dim=-1)
        return both.cos().to(x.dtype).unsqueeze(1), both.sin().to(x.dtype).unsqueeze(1)

    def rotate_half(self, x: Tensor) -> Tensor:
        return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)


class NeighboursInPart(Neighbours):
    width = 4

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((super().forward(x[..., :4]), x[..., 4:]), dim=-1)


class NeighboursOfGlm(Neighbours):
    """Halves side by side are cut and repeated in turn."""

    def cos_sin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = Rotary.cos_sin(self, x)
        return tuple(one[..., : HEAD_DIM // 2].repeat_interleave(2, dim=-1) for one in (cos, sin))


class Products(Rotary):
    def forward(self, x: Tensor) -> Tensor:
        angles = self.angles(x).unsqueeze(1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class ProductsOfNeighbours(Products):
    def forward(self, x: Tensor) -> Tensor:
        angles = self.angles(x).unsqueeze(1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.stack((cos * first - sin * second, second * cos + first * sin), dim=-1).flatten(-2)


def canonical(module: nn.Module, dtype: torch.dtype = torch.float32) -> Program:
    program = captured(module.eval(), x=torch.randn(2, HEADS, TOKENS, HEAD_DIM, dtype=dtype))
    return rewritten(Canonicalize(), program, tolerance=1e-6 if dtype == torch.float32 else 1e-2)[0]


def count(program: Program) -> int:
    return sum(node.target is torch.ops.regraft.rotary_embedding.default for node in program.graph.nodes)


def test_eight_operators_become_one_and_half_of_the_angles_go():
    program = canonical(PartOfAHead())
    assert program.text() == (
        "input %x : float32[batch, 2, 3, 8]\n"
        "%0 = aten.slice.Tensor(%x, 3, 0, 4) : float32[batch, 2, 3, 4]\n"
        "%1 = aten.slice.Tensor(%x, 3, 4, 9223372036854775807) : float32[batch, 2, 3, 4]\n"
        "%2 = aten.arange(3, device=device(type='cpu'), pin_memory=False) : int64[3]\n"
        "%3 = aten.unsqueeze(%2, 0) : int64[1, 3]\n"
        "%4 = aten.unsqueeze(%3, 2) : int64[1, 3, 1]\n"
        "%5 = aten.to.dtype(%4, float32) : float32[1, 3, 1]\n"
        "%6 = aten.mul.Tensor(%5, @frequencies) : float32[1, 3, 2]\n"
        "%7 = aten.cat([%6, %6], -1) : float32[1, 3, 4]\n"
        "%8 = aten.cos(%7) : float32[1, 3, 4]\n"
        "%9 = aten.unsqueeze(%8, 1) : float32[1, 1, 3, 4]\n"
        "%10 = aten.sin(%7) : float32[1, 3, 4]\n"
        "%11 = aten.unsqueeze(%10, 1) : float32[1, 1, 3, 4]\n"
        "%12 = aten.mul.Tensor(%0, %9) : float32[batch, 2, 3, 4]\n"
        "%13 = aten.slice.Tensor(%0, 3, 2, 9223372036854775807) : float32[batch, 2, 3, 2]\n"
        "%14 = aten.neg(%13) : float32[batch, 2, 3, 2]\n"
        "%15 = aten.slice.Tensor(%0, 3, 0, 2) : float32[batch, 2, 3, 2]\n"
        "%16 = aten.cat([%14, %15], -1) : float32[batch, 2, 3, 4]\n"
        "%17 = aten.mul.Tensor(%16, %11) : float32[batch, 2, 3, 4]\n"
        "%18 = aten.add.Tensor(%12, %17) : float32[batch, 2, 3, 4]\n"
        "%19 = aten.cat([%18, %1], -1) : float32[batch, 2, 3, 8]\n"
        "return (%19)\n"
    )
    after, result = rewritten(FuseRotary(), program, tolerance=TOLERANCE)
    assert after.text() == (
        "input %x : float32[batch, 2, 3, 8]\n"
        "%0 = aten.arange(3, device=device(type='cpu'), pin_memory=False) : int64[3]\n"
        "%1 = aten.unsqueeze(%0, 0) : int64[1, 3]\n"
        "%2 = aten.unsqueeze(%1, 2) : int64[1, 3, 1]\n"
        "%3 = aten.to.dtype(%2, float32) : float32[1, 3, 1]\n"
        "%4 = aten.mul.Tensor(%3, @frequencies) : float32[1, 3, 2]\n"
        "%5 = aten.cos(%4) : float32[1, 3, 2]\n"
        "%6 = aten.sin(%4) : float32[1, 3, 2]\n"
        "%7 = regraft.rotary_embedding(%x, %5, %6, False) : float32[batch, 2, 3, 8]\n"
        "return (%7)\n"
    )
    assert result.changed == ("cat_2",)


FORMS = [
    Rotary,
    OperandsInAnotherOrder,
    Chunks,
    NegativeStart,
    Scaled,
    RepeatedAngles,
    Tables,
    StoredFrequenciesTwice,
    PartOfAHead,
    PartOfAHeadSplit,
    TheBackOfAHead,
    Neighbours,
    NeighboursInPart,
    NeighboursOfGlm,
    Products,
    ProductsOfNeighbours,
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, TOLERANCE), (torch.bfloat16, 1e-2)])
def test_every_form(form: type[nn.Module], dtype: torch.dtype, tolerance: float):
    after, result = rewritten(FuseRotary(), canonical(form(), dtype), tolerance=tolerance)
    assert len(result.changed) == count(after) == 1
    assert result.refusals == ()
    assert not [node for node in after.graph.nodes if node.name.startswith(("neg", "stack", "chunk"))]


@pytest.mark.parametrize("form", [PartOfAHead, PartOfAHeadSplit, NeighboursInPart])
def test_the_rest_of_the_head_is_part_of_it(form: type[nn.Module]):
    after, _ = rewritten(FuseRotary(), canonical(form()), tolerance=TOLERANCE)
    assert not [node for node in after.graph.nodes if node.name.startswith(("cat", "slice", "split"))]


def test_layers_share_their_cosines():
    class Layers(Rotary):
        def forward(self, x: Tensor) -> Tensor:
            cos, sin = self.cos_sin(x)
            for _ in range(3):
                x = (x * cos) + (self.rotate_half(x) * sin)
            return x

    after, _ = rewritten(FuseRotary(), canonical(Layers()), tolerance=TOLERANCE)
    assert count(after) == 3
    assert sum(node.name.startswith(("cos", "sin")) for node in after.graph.nodes) == 2


def test_tables_are_stored_for_one_of_a_pair():
    after, _ = rewritten(FuseRotary(), canonical(Tables()), tolerance=TOLERANCE)
    assert {name: tuple(weight.shape) for name, weight in after.weights().items()} == {
        "cos_half": (16, HEAD_DIM // 2),
        "sin_half": (16, HEAD_DIM // 2),
    }


class HalvesDiffer(Rotary):
    def cos_sin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat((self.angles(x), 2 * self.angles(x)), dim=-1)
        return both.cos().unsqueeze(1), both.sin().unsqueeze(1)


class StoredHalvesDiffer(Tables):
    def __init__(self) -> None:
        super().__init__()
        self.sin[3, 2] += 1


class AnglesOfNeighboursForHalves(Neighbours):
    def rotate_half(self, x: Tensor) -> Tensor:
        return Rotary.rotate_half(self, x)


class HeadsDiffer(Rotary):
    def cos_sin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().cos_sin(x)
        return cos * torch.arange(1, HEADS + 1)[None, :, None, None], sin


class OneRowForAllTokens(Rotary):
    def cos_sin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().cos_sin(x)
        return cos[:, :, 1:2], sin


class TurnedReturned(Rotary):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos_sin(x)
        turned = self.rotate_half(x)
        return x * cos + turned * sin, turned


class ProductReturned(Rotary):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos_sin(x)
        product = x * cos
        return product + self.rotate_half(x) * sin, product


class Subtracted(Rotary):
    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.cos_sin(x)
        return x * cos - self.rotate_half(x) * sin


class AnotherValueTurned(Rotary):
    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.cos_sin(x)
        return x * cos + self.rotate_half(torch.tanh(x)) * sin


class WithoutHeads(Rotary):
    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.cos_sin(x)
        x, cos, sin = x[:, 0], cos[:, 0], sin[:, 0]
        return x * cos + self.rotate_half(x) * sin


class StaysWide(Rotary):
    """Cosines are float32, so the result of bfloat16 input is too."""

    def forward(self, x: Tensor) -> Tensor:
        narrow = x.to(torch.bfloat16)
        cos, sin = self.cos_sin(x)
        return narrow * cos + self.rotate_half(narrow) * sin


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (HalvesDiffer, "cos or sin are not known to be equal for both numbers of a pair"),
        (StoredHalvesDiffer, "cos or sin are not known to be equal for both numbers of a pair"),
        (AnglesOfNeighboursForHalves, "cos or sin are not known to be equal for both numbers of a pair"),
        (HeadsDiffer, "cos or sin differ between heads"),
        (OneRowForAllTokens, "cos or sin have no row for every token"),
        (TurnedReturned, "an inner value has other users"),
        (ProductReturned, "an inner value has other users"),
        (Subtracted, "the turned half is not added as x * cos + rotate_half(x) * sin"),
        (AnotherValueTurned, "what is multiplied with cos is not what was turned"),
        (WithoutHeads, "x is not [batch, heads, tokens, head_dim]"),
        (StaysWide, "the result has another shape or dtype than x"),
    ],
)
def test_refusals(form: type[nn.Module], reason: str):
    _, result = rewritten(FuseRotary(), canonical(form()))
    assert result.changed == ()
    assert [refusal.reason for refusal in result.refusals] == [reason]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "gemma2", "phi3", "gpt_neox", "falcon", "modernbert"])
def test_queries_and_keys_of_real_architectures(model: str):
    program = zoo.canonical(model)
    after, result = rewritten(FuseRotary(), program, tolerance=1e-5)
    assert (len(result.changed), count(after), result.refusals) == (4, 4, ())
    cosines = [node for node in after.graph.nodes if node.target is torch.ops.aten.cos.default]
    assert len(cosines) == (2 if model == "modernbert" else 1), "modernbert's local layers have angles of their own"
