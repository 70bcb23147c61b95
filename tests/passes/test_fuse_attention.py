"""Attention sites in every form, and the fusing of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rewrite_checks import captured, rewritten
from torch import Tensor, nn

from compiler.passes.canonicalize import Canonicalize
from compiler.passes.fuse_attention import FuseAttention
from compiler.program import Program
from compiler.sites import Site, find_sites

HEADS, HEAD_DIM, TOKENS = 4, 8, 5
WIDTH = HEADS * HEAD_DIM
ROUNDING = 2e-6
X = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Self-attention in the plain eager form; the others change `attend`."""

    kv_heads = HEADS

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, self.kv_heads * HEAD_DIM) for _ in range(2))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(x.shape[0], TOKENS, -1, HEAD_DIM).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        return self.o(self.attend(q, k, v).transpose(1, 2).reshape(x.shape[0], TOKENS, WIDTH))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.weigh(q @ k.transpose(-1, -2) / HEAD_DIM**0.5) @ v

    def weigh(self, scores: Tensor) -> Tensor:
        return self.dropout(F.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype))


class KeyTurnedAtOnce(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(x.shape[0], TOKENS, HEADS, HEAD_DIM) for layer in (self.q, self.k, self.v))
        weights = self.weigh(q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * HEAD_DIM**-0.5)
        return self.o((weights @ v.transpose(1, 2)).transpose(1, 2).flatten(2))


class GroupedHeads(Attention):
    kv_heads = 2

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (t[:, :, None].expand(t.shape[0], 2, 2, TOKENS, HEAD_DIM).reshape(q.shape) for t in (k, v))
        return super().attend(q, k, v)


class RepeatInterleaved(Attention):
    kv_heads = 2

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().attend(q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1))


class Softcapped(Attention):
    def weigh(self, scores: Tensor) -> Tensor:
        return super().weigh(torch.tanh(scores / 3.0) * 3.0)


class Exported(Attention):
    """As PyTorch's exporter writes it for ONNX: the key turned in three dims, halves of the scale, no nan."""

    root = HEAD_DIM**-0.25

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        turned = k.reshape(-1, TOKENS, HEAD_DIM).transpose(1, 2).reshape(k.shape[0], -1, HEAD_DIM, TOKENS)
        return self.weigh((q * self.root) @ (turned * self.root)) @ v

    def weigh(self, scores: Tensor) -> Tensor:
        weights = F.softmax(scores, dim=-1)
        return torch.where(torch.isnan(weights), 0.0, weights)


class ExportedGroupedHeads(Exported):
    kv_heads = 2

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (t[:, :, None].expand(t.shape[0], 2, 2, TOKENS, HEAD_DIM).reshape(q.shape) for t in (k, v))
        return super().attend(q, k, v)


class ExportedBefore(Exported):
    """As the older exporter writes it: the key turned at once, the factor in front."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(x.shape[0], TOKENS, HEADS, HEAD_DIM) for layer in (self.q, self.k, self.v))
        weights = self.weigh((self.root * q.transpose(1, 2)) @ (k.permute(0, 2, 3, 1) * self.root))
        return self.o((weights @ v.transpose(1, 2)).transpose(1, 2).flatten(2))


class ScaledQueryAlone(Attention):
    """bart: the scale belongs to the query, as it does where aten's attention is given 1."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.weigh((q * 0.3) @ k.transpose(-1, -2)) @ v


class Masked(Attention):
    def weigh(self, scores: Tensor) -> Tensor:
        row = torch.arange(TOKENS)
        return super().weigh(scores + torch.where(row[None, :] <= row[:, None], 0.0, -torch.inf) + torch.cos(row))


class Selected(Attention):
    def weigh(self, scores: Tensor) -> Tensor:
        return super().weigh(torch.where(torch.cos(torch.arange(TOKENS)) > -0.5, scores, -torch.inf))


class Causal(Attention):
    def weigh(self, scores: Tensor) -> Tensor:
        row = torch.arange(TOKENS)
        return super().weigh(scores + torch.where(row[None, :] <= row[:, None], 0.0, torch.finfo(X.dtype).min))


class Batched(Attention):
    """bloom: batch and heads in one dim, the bias inside baddbmm."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        merged = [t.reshape(-1, TOKENS, HEAD_DIM) for t in (q, k, v)]
        bias = torch.arange(TOKENS).to(q.dtype).expand(q.shape[0], HEADS, TOKENS).reshape(-1, 1, TOKENS)
        scores = torch.baddbmm(bias, merged[0], merged[1].transpose(1, 2), alpha=HEAD_DIM**-0.5)
        weights = self.weigh(scores.view(q.shape[0], HEADS, TOKENS, TOKENS)).view(-1, TOKENS, TOKENS)
        return torch.bmm(weights, merged[2]).view(q.shape)


class Aten(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class AtenCausal(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.2)


class AtenGrouped(Attention):
    kv_heads = 1

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class AtenAlwaysTrue(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = (torch.arange(TOKENS)[:, None] >= 0).expand(q.shape[0], 1, TOKENS, TOKENS)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def canonical(module: type[Attention], x: Tensor = X) -> Program:
    torch.manual_seed(0)
    program = captured(module().to(x.dtype).eval(), x=x)
    return rewritten(Canonicalize(), program, tolerance=ROUNDING if x.dtype == torch.float32 else 2e-2)[0]


def attention_line(program: Program) -> str:
    (line,) = (line for line in program.text().splitlines() if "regraft.attention" in line)
    return line


def test_eager_attention_becomes_one_op():
    program = canonical(Attention)
    assert program.text() == (
        "input %x : float32[batch, 5, 32]\n"
        "%0 = aten.sym_size.int(%x, 0) : batch\n"
        "%1 = aten.linear(%x, @q.weight, @q.bias) : float32[batch, 5, 32]\n"
        "%2 = aten.reshape(%1, [%0, 5, -1, 8]) : float32[batch, 5, 4, 8]\n"
        "%3 = aten.transpose.int(%2, 1, 2) : float32[batch, 4, 5, 8]\n"
        "%4 = aten.linear(%x, @k.weight, @k.bias) : float32[batch, 5, 32]\n"
        "%5 = aten.reshape(%4, [%0, 5, -1, 8]) : float32[batch, 5, 4, 8]\n"
        "%6 = aten.transpose.int(%5, 1, 2) : float32[batch, 4, 5, 8]\n"
        "%7 = aten.linear(%x, @v.weight, @v.bias) : float32[batch, 5, 32]\n"
        "%8 = aten.reshape(%7, [%0, 5, -1, 8]) : float32[batch, 5, 4, 8]\n"
        "%9 = aten.transpose.int(%8, 1, 2) : float32[batch, 4, 5, 8]\n"
        "%10 = aten.transpose.int(%6, 2, 3) : float32[batch, 4, 8, 5]\n"
        "%11 = aten.matmul(%3, %10) : float32[batch, 4, 5, 5]\n"
        "%12 = aten.div.Tensor(%11, 2.8284271247461903) : float32[batch, 4, 5, 5]\n"
        "%13 = aten.softmax.int(%12, -1) : float32[batch, 4, 5, 5]\n"
        "%14 = aten.matmul(%13, %9) : float32[batch, 4, 5, 8]\n"
        "%15 = aten.transpose.int(%14, 1, 2) : float32[batch, 5, 4, 8]\n"
        "%16 = aten.reshape(%15, [%0, 5, 32]) : float32[batch, 5, 32]\n"
        "%17 = aten.linear(%16, @o.weight, @o.bias) : float32[batch, 5, 32]\n"
        "return (%17)\n"
    )
    after, result = rewritten(FuseAttention(), program, tolerance=ROUNDING)
    assert after.text() == (
        "input %x : float32[batch, 5, 32]\n"
        "%0 = aten.sym_size.int(%x, 0) : batch\n"
        "%1 = aten.linear(%x, @q.weight, @q.bias) : float32[batch, 5, 32]\n"
        "%2 = aten.reshape(%1, [%0, 5, -1, 8]) : float32[batch, 5, 4, 8]\n"
        "%3 = aten.transpose.int(%2, 1, 2) : float32[batch, 4, 5, 8]\n"
        "%4 = aten.linear(%x, @k.weight, @k.bias) : float32[batch, 5, 32]\n"
        "%5 = aten.reshape(%4, [%0, 5, -1, 8]) : float32[batch, 5, 4, 8]\n"
        "%6 = aten.transpose.int(%5, 1, 2) : float32[batch, 4, 5, 8]\n"
        "%7 = aten.linear(%x, @v.weight, @v.bias) : float32[batch, 5, 32]\n"
        "%8 = aten.reshape(%7, [%0, 5, -1, 8]) : float32[batch, 5, 4, 8]\n"
        "%9 = aten.transpose.int(%8, 1, 2) : float32[batch, 4, 5, 8]\n"
        "%10 = regraft.attention(%3, %6, %9, None, False, 0.35355339059327373, 0.0) : float32[batch, 4, 5, 8]\n"
        "%11 = aten.transpose.int(%10, 1, 2) : float32[batch, 5, 4, 8]\n"
        "%12 = aten.reshape(%11, [%0, 5, 32]) : float32[batch, 5, 32]\n"
        "%13 = aten.linear(%12, @o.weight, @o.bias) : float32[batch, 5, 32]\n"
        "return (%13)\n"
    )
    assert len(result.changed) == 1
    assert result.refusals == ()


@pytest.mark.parametrize(
    ("module", "kv_heads", "mask", "flags"),
    [
        (Attention, 4, "none", (False, HEAD_DIM**-0.5, 0.0)),
        (KeyTurnedAtOnce, 4, "none", (False, HEAD_DIM**-0.5, 0.0)),
        (GroupedHeads, 2, "none", (False, HEAD_DIM**-0.5, 0.0)),
        (RepeatInterleaved, 2, "none", (False, HEAD_DIM**-0.5, 0.0)),
        (Softcapped, 4, "none", (False, HEAD_DIM**-0.5, 3.0)),
        (Exported, 4, "none", (False, HEAD_DIM**-0.5, 0.0)),
        (ExportedGroupedHeads, 2, "none", (False, HEAD_DIM**-0.5, 0.0)),
        (ExportedBefore, 4, "none", (False, HEAD_DIM**-0.5, 0.0)),
        (ScaledQueryAlone, 4, "none", (False, 1.0, 0.0)),
        (Masked, 4, "bias", (True, HEAD_DIM**-0.5, 0.0)),
        (Selected, 4, "padding", (False, HEAD_DIM**-0.5, 0.0)),
        (Causal, 4, "none", (True, HEAD_DIM**-0.5, 0.0)),
        (Batched, 4, "bias", (False, HEAD_DIM**-0.5, 0.0)),
        (Aten, 4, "none", (False, HEAD_DIM**-0.5, 0.0)),
        (AtenCausal, 4, "none", (True, 0.2, 0.0)),
        (AtenGrouped, 1, "none", (False, HEAD_DIM**-0.5, 0.0)),
        (AtenAlwaysTrue, 4, "none", (False, HEAD_DIM**-0.5, 0.0)),
    ],
)
def test_every_form(module: type[Attention], kv_heads: int, mask: str, flags: tuple[bool, float, float]):
    program = canonical(module)
    (before,) = find_sites(program, ("attention",))
    assert isinstance(before, Site), before
    assert [value.meta["val"].shape[1] for value in before.inputs[:3]] == [HEADS, kv_heads, kv_heads]
    roles = [before.bindings[role] for role in ("query", "key", "value", "output")]
    assert roles == ["q", "k", "v", "o"]
    after, result = rewritten(FuseAttention(), program, tolerance=ROUNDING)
    assert len(result.changed) == 1
    (site,) = find_sites(after, ("attention",))
    assert isinstance(site, Site)
    assert site.output.args[4] is flags[0]
    assert site.output.args[5:] == pytest.approx(flags[1:])
    assert (site.output.args[3] is None) == (mask == "none")
    assert site.bindings["mask"] == "+".join(
        part for part in ("causal" if flags[0] else "", mask if mask != "none" else "") if part
    ) or (mask == "none" and site.bindings["mask"] in ("none", "causal"))
    assert "softmax" not in after.text()


@pytest.mark.parametrize("module", [Attention, Softcapped, Batched, Aten])
def test_half_precision(module: type[Attention]):
    after, result = rewritten(FuseAttention(), canonical(module, X.to(torch.bfloat16)), tolerance=2e-2)
    assert len(result.changed) == 1
    assert "regraft.attention" in after.text()


class WeightsReturned(Attention):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        heads = x.view(x.shape[0], TOKENS, HEADS, HEAD_DIM).transpose(1, 2)
        weights = torch.softmax(heads @ heads.transpose(-1, -2), -1)
        return weights @ heads, weights


class ScoresReturned(WeightsReturned):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        heads = x.view(x.shape[0], TOKENS, HEADS, HEAD_DIM).transpose(1, 2)
        scores = heads @ heads.transpose(-1, -2)
        return torch.softmax(scores, -1) @ heads, scores


class MaskBeforeScale(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.weigh((q @ k.transpose(-1, -2) + torch.cos(torch.arange(TOKENS))) * 0.3) @ v


class MaskBeforeSoftcap(Softcapped):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.weigh(q @ k.transpose(-1, -2) + torch.cos(torch.arange(TOKENS))) @ v


class OtherCap(Attention):
    def weigh(self, scores: Tensor) -> Tensor:
        return super().weigh(torch.tanh(scores / 3.0) * 4.0)


class OtherDim(Attention):
    def weigh(self, scores: Tensor) -> Tensor:
        return F.softmax(scores, dim=-2)


class NotTurned(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.weigh(q @ torch.cos(k.transpose(-1, -2))) @ v


class NanFilledWithOne(Exported):
    def weigh(self, scores: Tensor) -> Tensor:
        weights = F.softmax(scores, dim=-1)
        return torch.where(torch.isnan(weights), 1.0, weights)


class FilledWithANumber(Attention):
    def weigh(self, scores: Tensor) -> Tensor:
        return super().weigh(torch.where(torch.arange(TOKENS) > 1, scores, -1e4))


class SquashedScores(Attention):
    def weigh(self, scores: Tensor) -> Tensor:
        return super().weigh(torch.tanh(scores) + torch.cos(torch.arange(TOKENS)))


class LearnedScale(Attention):
    def weigh(self, scores: Tensor) -> Tensor:
        return super().weigh(scores * self.q.bias[:TOKENS])


class NotFromAProduct(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q[..., :TOKENS], dim=-1) @ v


class OneHead(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class Unvalued(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-1, -2), dim=-1).mean(-1, keepdim=True) * v


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (WeightsReturned, "the attention weights are read elsewhere too"),
        (ScoresReturned, "the scores are read elsewhere too"),
        (MaskBeforeScale, "a mask is applied before the scores are scaled"),
        (MaskBeforeSoftcap, "a mask is applied before the softcap"),
        (OtherCap, "tanh is not a softcap: it does not divide by what it multiplies with"),
        (OtherDim, "softmax is not over the last dim"),
        (NotTurned, "the key is not transposed in its last two dims"),
        (NanFilledWithOne, "the weights are not multiplied with values"),
        (FilledWithANumber, "scores are replaced by other than minus infinity: fully masked rows would differ"),
        (SquashedScores, "aten.tanh.default stands between the product and its softmax"),
        (LearnedScale, "the scores are scaled by something other than a number"),
        (NotFromAProduct, "the weights do not come from a product of query and key"),
        (OneHead, "the query is not [batch, heads, tokens, head_dim]"),
        (Unvalued, "the weights are not multiplied with values"),
    ],
)
def test_refusals(module: type[nn.Module], reason: str):
    program, result = rewritten(FuseAttention(), canonical(module))
    assert result.changed == ()
    (refusal,) = result.refusals
    assert refusal.reason == reason
    assert refusal.node in {node.name for node in program.graph.nodes}


def test_a_softmax_that_weighs_nothing_is_no_attention():
    class Classifier(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x, dim=-1)

    _, result = rewritten(FuseAttention(), canonical(Classifier))
    assert (result.changed, result.refusals) == ((), ())
