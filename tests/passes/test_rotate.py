from __future__ import annotations

import pytest
import torch
import zoo
from rewrite_checks import captured, rewritten
from torch import Tensor, nn

from compiler.passes.canonicalize import Canonicalize
from compiler.passes.fuse_rms_norm import FuseRmsNorm
from compiler.passes.rotate import Rotate
from compiler.program import Program

VOCABULARY, HIDDEN, INNER = 11, 12, 20
TOLERANCE = 1e-5


class Block(nn.Module):
    """A gated feed-forward block with a bias at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-6)
        self.gate, self.up = nn.Linear(HIDDEN, INNER, bias=False), nn.Linear(HIDDEN, INNER)
        self.down = nn.Linear(INNER, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        return x + self.down(torch.sigmoid(self.gate(normed)) * self.up(normed))


class Decoder(nn.Module):
    """Tokens in, logits out."""

    tied = False

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.block = Block()
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-6)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        if self.tied:
            self.head.weight = self.embedding.weight
        for norm in self.modules():
            if isinstance(norm, nn.RMSNorm) and norm.weight is not None:
                norm.weight.data = torch.rand_like(norm.weight) + 0.5

    def stream(self, ids: Tensor) -> Tensor:
        return self.block(self.embedding(ids))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.stream(ids)))


class Tied(Decoder):
    tied = True


class TiedBehindAPlainNorm(Tied):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.norm.weight, 1.5)


class Scaled(Decoder):
    """Embeddings times a number, as gemma's, and branches too, as granite's."""

    def stream(self, ids: Tensor) -> Tensor:
        embedded = self.embedding(ids) * HIDDEN**0.5
        return embedded + 0.22 * self.block.down(self.block.up(self.block.norm(embedded)))


class TwoTables(Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(32, HIDDEN)

    def stream(self, ids: Tensor) -> Tensor:
        return self.block(self.embedding(ids) + self.positions(torch.arange(ids.shape[1])))


class ReadWithoutANorm(Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.also = nn.Linear(HIDDEN, HIDDEN)

    def stream(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.block(x + self.also(x))


class LastToken(Tied):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.stream(ids))[:, -1])


class StoredTransposed(Decoder):
    """As GPT-2's layers are."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.back = nn.Parameter(torch.randn(HIDDEN, INNER)), nn.Parameter(torch.randn(INNER, HIDDEN))

    def stream(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return x + torch.tanh(self.block.norm(x) @ self.into) @ self.back


def canonical(module: nn.Module) -> Program:
    program = captured(module.eval(), ids=torch.arange(6).reshape(2, 3))
    return rewritten(Canonicalize(), program, tolerance=TOLERANCE)[0]


def test_both_graphs_and_what_becomes_of_the_weights():
    torch.manual_seed(0)
    program, _ = rewritten(FuseRmsNorm(), canonical(Tied()), tolerance=TOLERANCE)
    assert program.text() == (
        "input %ids : int64[batch, 3]\n"
        "%0 = aten.embedding(@embedding.weight, %ids) : float32[batch, 3, 12]\n"
        "%1 = regraft.rms_norm(%0, @block.norm.weight, 1e-06) : float32[batch, 3, 12]\n"
        "%2 = aten.linear(%1, @block.gate.weight) : float32[batch, 3, 20]\n"
        "%3 = aten.sigmoid(%2) : float32[batch, 3, 20]\n"
        "%4 = aten.linear(%1, @block.up.weight, @block.up.bias) : float32[batch, 3, 20]\n"
        "%5 = aten.mul.Tensor(%3, %4) : float32[batch, 3, 20]\n"
        "%6 = aten.linear(%5, @block.down.weight, @block.down.bias) : float32[batch, 3, 12]\n"
        "%7 = aten.add.Tensor(%0, %6) : float32[batch, 3, 12]\n"
        "%8 = regraft.rms_norm(%7, @norm.weight, 1e-06) : float32[batch, 3, 12]\n"
        "%9 = aten.linear(%8, @embedding.weight) : float32[batch, 3, 11]\n"
        "return (%9)\n"
    )
    after, result = rewritten(Rotate(), program, tolerance=TOLERANCE)
    assert after.text() == (
        "input %ids : int64[batch, 3]\n"
        "%0 = aten.embedding(@embedding.weight_rotated, %ids) : float32[batch, 3, 12]\n"
        "%1 = regraft.rms_norm(%0, @block.norm.weight, 1e-06) : float32[batch, 3, 12]\n"
        "%2 = aten.linear(%1, @block.gate.weight) : float32[batch, 3, 20]\n"
        "%3 = aten.sigmoid(%2) : float32[batch, 3, 20]\n"
        "%4 = aten.linear(%1, @block.up.weight, @block.up.bias) : float32[batch, 3, 20]\n"
        "%5 = aten.mul.Tensor(%3, %4) : float32[batch, 3, 20]\n"
        "%6 = aten.linear(%5, @block.down.weight, @block.down.bias) : float32[batch, 3, 12]\n"
        "%7 = aten.add.Tensor(%0, %6) : float32[batch, 3, 12]\n"
        "%8 = regraft.rms_norm(%7, @norm.weight, 1e-06) : float32[batch, 3, 12]\n"
        "%9 = aten.linear(%8, @norm.weight_rotated) : float32[batch, 3, 12]\n"
        "%10 = aten.add.Tensor(%8, %9) : float32[batch, 3, 12]\n"
        "%11 = aten.linear(%10, @embedding.weight_rotated) : float32[batch, 3, 11]\n"
        "return (%11)\n"
    )
    assert result.changed == ("embedding", "block.norm", "block.gate", "block.up", "block.down", "norm", "head")
    assert result.notes == ("head stays tied to the embedding; a product [12, 12] comes before it",)
    assert torch.equal(after.weight("block.norm.weight"), torch.ones(HIDDEN))
    root_mean_square = program.weight("norm.weight").square().mean().sqrt()
    torch.testing.assert_close(after.weight("norm.weight"), root_mean_square.expand(HIDDEN))


@pytest.mark.parametrize(
    "form",
    [Decoder, Tied, TiedBehindAPlainNorm, Scaled, TwoTables, ReadWithoutANorm, LastToken, StoredTransposed],
)
def test_every_form(form: type[nn.Module]):
    program = canonical(form())
    after, result = rewritten(Rotate(), program, tolerance=TOLERANCE)
    assert result.refusals == ()
    before, stored = program.weights(), after.weights()
    assert "embedding.weight_rotated" in stored
    same = {name for name in before if name in stored and torch.equal(before[name], stored[name])}
    assert same <= {"block.up.bias", "norm.weight"}, "only what does not touch the stream keeps its numbers"


def test_a_tied_head_stays_one_table_or_becomes_two():
    program = canonical(Tied())
    tied, _ = rewritten(Rotate(), program, tolerance=TOLERANCE)
    two, result = rewritten(Rotate(untie=True), program, tolerance=TOLERANCE)
    shapes = [[tuple(weight.shape) for weight in one.weights().values()] for one in (program, tied, two)]
    assert [found.count((VOCABULARY, HIDDEN)) for found in shapes] == [1, 1, 2]
    assert [found.count((HIDDEN, HIDDEN)) for found in shapes] == [0, 1, 0]
    assert result.notes == ("head is stored apart from the embedding: 132 weights more",)


def test_a_norm_that_scales_all_channels_alike_costs_a_tied_head_nothing():
    after, result = rewritten(Rotate(), canonical(TiedBehindAPlainNorm()), tolerance=TOLERANCE)
    assert result.notes == ()
    assert torch.equal(after.weight("norm.weight"), torch.full((HIDDEN,), 1.5))
    assert len(after.weights()) == len(canonical(TiedBehindAPlainNorm()).weights())


class Attention(nn.Module):
    """Two query heads share one of key and value, which come from one layer with the query."""

    heads, head_dim = 2, 6

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(HIDDEN, 24), nn.Linear(HIDDEN, HIDDEN, bias=False)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [batch, heads, tokens, head_dim]

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x)
        query, key, values = self.split(packed[..., :12]), self.split(packed[..., 12:18]), self.split(packed[..., 18:])
        scores = (query @ self.for_all(key).transpose(2, 3) * 0.3).softmax(-1)
        return self.out((scores @ self.for_all(values)).transpose(1, 2).flatten(2))

    def for_all(self, x: Tensor) -> Tensor:
        batch, _, tokens, _ = x.shape
        return x[:, :, None].expand(-1, -1, self.heads, -1, -1).reshape(batch, self.heads, tokens, self.head_dim)


class Attending(nn.Module):
    """Its stream cannot be followed; its heads can."""

    attention: type[nn.Module] = Attention

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.attention_layer = nn.Embedding(VOCABULARY, HIDDEN), self.attention()

    def forward(self, ids: Tensor) -> Tensor:
        return self.attention_layer(self.embedding(ids))


def test_heads_of_values_are_rotated_and_nothing_else_of_their_layer():
    from compiler.quantization.rotation import randomized_hadamard

    program = canonical(Attending())
    after, result = rewritten(Rotate(), program, tolerance=TOLERANCE)
    assert (result.changed, result.refusals) == (("attention_layer.qkv", "attention_layer.out"), ())
    before, rotated = program.weight("attention_layer.qkv.weight"), after.weight("attention_layer.qkv.weight_rotated")
    assert torch.equal(rotated[:18], before[:18])
    turn = randomized_hadamard(Attention.head_dim, seed=0)
    torch.testing.assert_close(rotated[18:].double(), turn.T @ before[18:].double(), rtol=0, atol=1e-6)
    assert rewritten(Rotate(heads=False), program)[1].changed == ()


class KeysAreValues(Attention):
    def forward(self, x: Tensor) -> Tensor:
        heads = self.split(self.qkv(x)[..., :HIDDEN])
        scores = (heads @ heads.transpose(2, 3) * 0.3).softmax(-1)
        return self.out((scores @ heads).transpose(1, 2).flatten(2))


class HeadsAveraged(Attention):
    def forward(self, x: Tensor) -> Tensor:
        query, key, values = self.qkv(x)[..., :18].unflatten(-1, (3, 6)).transpose(1, 2)[:, :, None].unbind(1)
        return ((query @ key.transpose(2, 3) * 0.3).softmax(-1) @ values).mean(1)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (KeysAreValues, "its values are not heads side by side from one linear layer"),
        (HeadsAveraged, "what it gives is not heads side by side for one linear layer"),
    ],
)
def test_refused_heads(form: type[nn.Module], reason: str):
    class Model(Attending):
        attention = form

    _, result = rewritten(Rotate(), canonical(Model()))
    assert result.changed == ()
    assert [refusal.reason for refusal in result.refusals] == [reason]


class NormBehindTheBlock(Decoder):
    """As gemma2's."""

    def __init__(self) -> None:
        super().__init__()
        self.behind = nn.RMSNorm(HIDDEN, eps=1e-6)

    def stream(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return x + self.behind(self.block.down(self.block.up(self.block.norm(x))))


class TakesTheMeanAway(Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)


class ReadByAnActivation(Decoder):
    def stream(self, ids: Tensor) -> Tensor:
        x = super().stream(ids)
        return x + self.block.down(torch.exp(x).sum(-1, keepdim=True) * self.block.up(x))


class NormReadByAnActivation(Decoder):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.stream(ids))))


class StreamReturned(Decoder):
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stream(ids)
        return self.head(self.norm(x)), x


class NormReturned(Decoder):
    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.stream(ids))


class ActivationWrites(Decoder):
    def stream(self, ids: Tensor) -> Tensor:
        return super().stream(ids) + torch.tanh(self.block.down(self.block.up(self.embedding(ids))))


class SharedLayer(Decoder):
    def stream(self, ids: Tensor) -> Tensor:
        return self.block(self.block(self.embedding(ids)))


class NoTable(Decoder):
    def stream(self, ids: Tensor) -> Tensor:
        return self.block.down(torch.tanh(ids[..., None].expand(-1, -1, INNER).float()))


@pytest.mark.parametrize(
    ("form", "reason", "node"),
    [
        (NormBehindTheBlock, "the rms norm behind writes to it", "rms_norm"),
        (TakesTheMeanAway, "the layer norm norm takes the mean away, which is no rotation", "layer_norm"),
        (ReadByAnActivation, "aten.exp.default reads it, which is no linear layer", "exp"),
        (NormReadByAnActivation, "aten.tanh.default reads what a norm gives, which is no linear layer", "tanh"),
        (StreamReturned, "it is an output of the model", "add"),
        (NormReturned, "an output reads what a norm gives, which is no linear layer", "output"),
        (ActivationWrites, "aten.tanh.default writes to it", "tanh"),
        (SharedLayer, "the weight block.down.weight is shared with linear_2", "linear_5"),
        (NoTable, "no embedding writes to it", "rms_norm"),
    ],
)
def test_refusals(form: type[nn.Module], reason: str, node: str):
    _, result = rewritten(Rotate(), canonical(form()))
    assert result.changed == ()
    assert [refusal.reason for refusal in result.refusals] == [reason]
    assert str(result.refusals[0].node).startswith(node)


def test_a_model_without_norms_has_no_stream():
    _, result = rewritten(Rotate(), canonical(nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 3))))
    assert result.changed == result.refusals == ()


def kurtosis(weight: Tensor) -> float:
    """The fourth moment over the squared second: 3 for a normal distribution."""
    centred = weight.double() - weight.double().mean()
    return float(centred.pow(4).mean() / centred.pow(2).mean().square())


def rounding_error(weight: Tensor) -> float:
    """What rounding every row to nearest with 4 bits leaves, relative to the weight's norm."""
    wide = weight.double()
    step = wide.abs().amax(1, keepdim=True) / 7
    return float(((wide / step).round() * step - wide).norm() / wide.norm())


@pytest.mark.parametrize("tie", [False, True])
def test_planted_outliers_are_spread_and_rounding_gets_finer(tie: bool):
    torch.manual_seed(0)
    width = 64

    class Planted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(40, width), nn.Linear(width, 40, bias=False)
            self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(2))
            self.up, self.down = nn.Linear(width, 96, bias=False), nn.Linear(96, width, bias=False)
            with torch.no_grad():
                for channel in (5, 41):
                    self.embedding.weight[:, channel] *= 30
                    self.up.weight[:, channel] *= 20
                    self.head.weight[:, channel] *= 20
                    self.down.weight[channel] *= 15
            if tie:
                self.head.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embedding(ids)
            x = x + self.down(torch.relu(self.up(self.norms[0](x))))
            return self.head(self.norms[1](x))

    program = canonical(Planted())
    after, _ = rewritten(Rotate(), program, tolerance=TOLERANCE)
    for name in ("embedding.weight", "up.weight", *(() if tie else ("head.weight",))):
        before = program.weight(name).detach()
        rotated = after.weight(f"{name}_rotated" if name == "embedding.weight" else name).detach()
        assert kurtosis(before) > 20
        assert kurtosis(rotated) < 4
        assert rounding_error(rotated) < rounding_error(before) / 2
    assert kurtosis(after.weight("down.weight").detach()) < 4 < kurtosis(program.weight("down.weight").detach())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3"])
def test_real_architectures(model: str):
    program = zoo.canonical(model)
    after, result = rewritten(Rotate(), program, tolerance=TOLERANCE)
    assert result.refusals == ()
    norms, matrices = 5, 7 if model != "phi3" else 4  # two layers; phi3 stores q, k and v as one, gate and up too
    assert len(result.changed) == norms + 1 + 2 * matrices + 1
    stored = after.weights()
    before = program.weights()
    assert sum(name.endswith("v_proj.weight_rotated") for name in stored) == 2  # phi3's is qkv_proj
    unchanged = [name for name in before if name in stored and torch.equal(before[name], stored[name])]
    assert not [
        name for name in unchanged if "proj.weight" in name or "embed_tokens.weight" in name or "lm_head" in name
    ]


@pytest.mark.slow
def test_gemma2_is_refused_for_its_norms_behind_the_blocks():
    program = zoo.canonical("gemma2")
    _, result = rewritten(Rotate(heads=False), program)
    assert [refusal.reason for refusal in result.refusals] == [
        "the rms norm layers.1.post_feedforward_layernorm writes to it"
    ]
