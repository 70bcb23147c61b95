"""prune-heads: groups with their queries, masks, models of many kinds, decoding afterwards, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
from decoding_checks import Decoder, passed, run_program
from pruning_checks import assert_pruned_is_masked, heads
from rewrite_checks import captured, context_of
from structured_checks import grafted, products, refusals
from torch import Tensor, nn

from compiler.passes.fuse_attention import FuseAttention
from compiler.passes.pruning.prune_heads import PruneHeads
from compiler.program import Program

WIDTH, HEADS, KV_HEADS, HEAD_DIM = 24, 6, 3, 4


class Grouped(nn.Module):
    """Attention whose keys and values are shared by two query heads each, normed and turned on the way."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        kept = KV_HEADS * HEAD_DIM
        self.joined = joined
        self.query, self.output = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = nn.Linear(WIDTH, kept), nn.Linear(WIDTH, kept)
        self.both = nn.Linear(WIDTH, WIDTH + 2 * kept)
        self.norm = nn.RMSNorm(HEAD_DIM)
        self.bias = nn.Parameter(torch.randn(1, HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 5, 24] to the same."""
        parts = self.query(x), self.key(x), self.value(x)
        if self.joined:
            kept = KV_HEADS * HEAD_DIM
            parts = self.both(x).split([WIDTH, kept, kept], dim=-1)
        query, key, value = (one.reshape(*one.shape[:2], -1, HEAD_DIM).transpose(1, 2) for one in parts)
        query, turn = self.norm(query), torch.linspace(0, 1, 5)[:, None]
        query, key = (
            one * turn.cos() + torch.cat([-one[..., 2:], one[..., :2]], -1) * turn.sin() for one in (query, key)
        )
        key, value = (one.repeat_interleave(2, 1) for one in (key, value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, self.bias.expand(1, HEADS, 5, 5))
        return x + self.output(mixed.transpose(1, 2).reshape(x.shape))


def program_of(module: nn.Module) -> Program:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    program = captured(module.eval(), x=torch.randn(6, 5, WIDTH))
    FuseAttention().rewrite(program, context_of(program))
    program.refresh()
    return program


@pytest.mark.parametrize("joined", [False, True])
def test_groups_go_with_their_queries(joined: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = program_of(Grouped(joined))
    graft = PruneHeads(ratio=0.67)
    after, result = assert_pruned_is_masked(graft, program, heads, monkeypatch, tmp_path)
    assert sorted(products(after)) == ([(24, 16), (32, 24)] if joined else [(8, 24), (8, 24), (16, 24), (24, 16)])
    assert result.outcomes[0].note.startswith("groups of heads: 2 of 3")


@pytest.mark.parametrize("saliency", ["magnitude", "activations"])
def test_saliencies(saliency: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graft = PruneHeads(ratio=0.34, saliency=saliency, refit=False)
    assert_pruned_is_masked(graft, program_of(Grouped(joined=False)), heads, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "gpt2", "bert", "vit", "qwen3", "gemma2", "phi3"])
def test_models_of_many_kinds(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = zoo.canonical(model).copy()
    FuseAttention().rewrite(program, context_of(program))
    program.refresh()
    _, result = assert_pruned_is_masked(PruneHeads(ratio=0.5), program, heads, monkeypatch, tmp_path)
    assert len(result.changed) == 2


@pytest.mark.slow
def test_a_model_of_fewer_heads_decodes() -> None:
    whole = passed(zoo.program("llama"), "canonicalize,fuse,prune-heads:ratio=0.5")
    incremental = passed(whole, "make-incremental")
    kept = {spec.name: spec.shape for spec in incremental.inputs if "past" in spec.name}
    assert all(1 in shape for shape in kept.values())
    tokens = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    expected = whole.run(tokens, torch.ones_like(tokens))[0]
    decoder = Decoder(incremental, run_program(incremental), rows=2, capacity=16)
    found = torch.cat([decoder.read(piece) for piece in torch.split(tokens, [5, 1, 1, 5], dim=1)], dim=1)
    torch.testing.assert_close(found[:, -5:], expected[:, -5:], rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert grafted(PruneHeads(ratio=0.5), incremental)[1].changed == (), "what is kept between calls stays"


class WrittenOut(nn.Module):
    """A softmax between products."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def mixed(self, x: Tensor) -> Tensor:
        query, key, value = (
            one.reshape(*x.shape[:2], HEADS, HEAD_DIM).transpose(1, 2) for one in self.qkv(x).chunk(3, -1)
        )
        weights = torch.softmax(query @ key.transpose(-1, -2) * 0.5, dim=-1)
        return (weights @ value).transpose(1, 2).reshape(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 5, 24] to the same."""
        return x + self.output(self.mixed(x))


class ReadTwice(WrittenOut):
    """What attention gives is an output too."""

    def mixed(self, x: Tensor) -> Tensor:
        query, key, value = (
            one.reshape(*x.shape[:2], HEADS, HEAD_DIM).transpose(1, 2) for one in self.qkv(x).chunk(3, -1)
        )
        found = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
        return found + found.flip(-1)


def test_what_is_refused() -> None:
    program = captured(WrittenOut().eval(), x=torch.randn(6, 5, WIDTH))
    (reason,) = refusals(PruneHeads(), program).values()
    assert reason == "its attention is written out; run fuse-attention first"
    (reason,) = refusals(PruneHeads(), program_of(ReadTwice())).values()
    assert reason == "what it gives is not read by one linear layer alone"
    (reason,) = refusals(PruneHeads(ratio=0.9), program_of(Grouped(joined=False))).values()
    assert reason == "ratio=0.9 leaves all of its 3 groups of heads"
