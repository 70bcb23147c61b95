"""make-incremental: the graph before and after, what it keeps, and a model for every refusal."""

from __future__ import annotations

import pytest
import torch
import zoo
from decoding_checks import passed, run_program
from rewrite_checks import captured, context_of, rewritten
from torch import Tensor, nn

from compiler.errors import CompilerError
from compiler.frontends.torch_export import capture
from compiler.ops.quantized_linear import quantized_linear
from compiler.passes.canonicalize import Canonicalize
from compiler.passes.make_incremental import MakeIncremental
from compiler.pipeline import Pipeline
from compiler.program import Program
from compiler.states import State

VOCABULARY, WIDTH, HEADS, LONGEST = 41, 32, 2, 64


class OneLayer(nn.Module):
    """Token and position tables, one causal attention, a head; each part is a method that a variant replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(LONGEST, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def positions(self, input_ids: Tensor) -> Tensor:
        return self.places(torch.arange(input_ids.shape[1])[None])

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    def mix(self, hidden: Tensor) -> Tensor:
        return hidden

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.mix(self.table(input_ids) + self.positions(input_ids))
        heads = (one.reshape(*one.shape[:2], HEADS, -1).transpose(1, 2) for one in self.qkv(hidden).chunk(3, dim=-1))
        attended = self.attend(*heads).transpose(1, 2).reshape(hidden.shape)
        return self.head(hidden + attended)


def program_of(module: nn.Module, **inputs: Tensor) -> Program:
    tokens = torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    given = {"input_ids": tokens, **inputs}
    dynamic = {"input_ids": {0: "batch", 1: "sequence"}, **{name: {0: "batch"} for name in inputs}}
    program = capture(module.eval(), given, source=type(module).__name__, role="causal-lm", dynamic=dynamic)
    Canonicalize().rewrite(program, context_of(program))
    program.refresh()
    return program


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return program_of(OneLayer())


BEFORE = """\
input %input_ids : int64[batch, sequence]
%0 = aten.sym_size.int(%input_ids, 0) : batch
%1 = aten.sym_size.int(%input_ids, 1) : sequence
%2 = aten.embedding(@table.weight, %input_ids) : float32[batch, sequence, 32]
%3 = aten.arange(%1, device=device(type='cpu'), pin_memory=False) : int64[sequence]
%4 = aten.unsqueeze(%3, 0) : int64[1, sequence]
%5 = aten.embedding(@places.weight, %4) : float32[1, sequence, 32]
%6 = aten.add.Tensor(%2, %5) : float32[batch, sequence, 32]
%7 = aten.linear(%6, @qkv.weight, @qkv.bias) : float32[batch, sequence, 96]
%8 = aten.chunk(%7, 3, -1) : tuple of 3
%9 = getitem(%8, 0) : float32[batch, sequence, 32]
%10 = getitem(%8, 1) : float32[batch, sequence, 32]
%11 = getitem(%8, 2) : float32[batch, sequence, 32]
%12 = aten.reshape(%9, [%0, %1, 2, -1]) : float32[batch, sequence, 2, 16]
%13 = aten.transpose.int(%12, 1, 2) : float32[batch, 2, sequence, 16]
%14 = aten.reshape(%10, [%0, %1, 2, -1]) : float32[batch, sequence, 2, 16]
%15 = aten.transpose.int(%14, 1, 2) : float32[batch, 2, sequence, 16]
%16 = aten.reshape(%11, [%0, %1, 2, -1]) : float32[batch, sequence, 2, 16]
%17 = aten.transpose.int(%16, 1, 2) : float32[batch, 2, sequence, 16]
%18 = aten.scaled_dot_product_attention(%13, %15, %17, None, 0.0, True) : float32[batch, 2, sequence, 16]
%19 = aten.transpose.int(%18, 1, 2) : float32[batch, sequence, 2, 16]
%20 = aten.reshape(%19, [%0, %1, 32]) : float32[batch, sequence, 32]
%21 = aten.add.Tensor(%6, %20) : float32[batch, sequence, 32]
%22 = aten.linear(%21, @head.weight) : float32[batch, sequence, 41]
return (%22)
"""
AFTER = """\
input %input_ids : int64[batch, sequence]
input %attention_mask : int64[batch, total_sequence]
input %logit_positions : int64[kept]
input %past_key_values_0_key : float32[batch, 2, capacity, 16]
input %past_key_values_0_value : float32[batch, 2, capacity, 16]
%0 = aten.sym_size.int(%input_ids, 1) : sequence
%1 = aten.sym_size.int(%attention_mask, 1) : total_sequence
%2 = aten.sum.dim_IntList(%attention_mask, [1]) : int64[batch]
%3 = aten.sub.Tensor(%2, %0) : int64[batch]
%4 = aten.clamp(%3, 0) : int64[batch]
%5 = aten.arange(%0) : int64[sequence]
%6 = aten.unsqueeze(%4, 1) : int64[batch, 1]
%7 = aten.add.Tensor(%6, %5) : int64[batch, sequence]
%8 = aten.sub.Tensor(%2, 1) : int64[batch]
%9 = aten.to.dtype(%8, int32) : int32[batch]
%10 = aten.embedding(@table.weight, %input_ids) : float32[batch, sequence, 32]
%11 = aten.embedding(@places.weight, %7) : float32[batch, sequence, 32]
%12 = aten.add.Tensor(%10, %11) : float32[batch, sequence, 32]
%13 = aten.linear(%12, @qkv.weight, @qkv.bias) : float32[batch, sequence, 96]
%14 = aten.chunk(%13, 3, -1) : tuple of 3
%15 = getitem(%14, 0) : float32[batch, sequence, 32]
%16 = getitem(%14, 1) : float32[batch, sequence, 32]
%17 = getitem(%14, 2) : float32[batch, sequence, 32]
%18 = regraft.group_query_attention(%15, %16, %17, %past_key_values_0_key, \
%past_key_values_0_value, %9, %1, None, None, None, None, 2, 2, 0.25, 0.0, -1, False) : tuple of 3
%19 = getitem(%18, 0) : float32[batch, sequence, 32]
%20 = getitem(%18, 1) : float32[batch, 2, capacity, 16]
%21 = getitem(%18, 2) : float32[batch, 2, capacity, 16]
%22 = aten.add.Tensor(%12, %19) : float32[batch, sequence, 32]
%23 = aten.sym_size.int(%22, 1) : sequence
%24 = aten.remainder.Scalar(%logit_positions, %23) : int64[kept]
%25 = aten.index_select(%22, 1, %24) : float32[batch, kept, 32]
%26 = aten.linear(%25, @head.weight) : float32[batch, kept, 41]
return (%26, %20, %21)
"""


def test_the_graph_before_and_after(program: Program):
    assert program.text() == BEFORE
    after, result = rewritten(MakeIncremental(), program, tolerance=1e-5)
    assert after.text() == AFTER
    assert result.changed == ("scaled_dot_product_attention",)
    assert not result.refusals


def test_states_are_named_as_onnxruntime_genai_names_them(program: Program):
    after, _ = rewritten(MakeIncremental(), program, tolerance=1e-5)
    assert after.states == (
        State("past_key_values.0.key", "present.0.key"),
        State("past_key_values.0.value", "present.0.value"),
    )
    assert [str(spec) for spec in after.inputs] == [
        "input_ids: int64[batch, sequence]",
        "attention_mask: int64[batch, total_sequence]",
        "logit_positions: int64[kept]",
        "past_key_values.0.key: float32[batch, 2, capacity, 16]",
        "past_key_values.0.value: float32[batch, 2, capacity, 16]",
    ]
    assert [str(spec) for spec in after.outputs] == [
        f"logits: float32[batch, kept, {VOCABULARY}]",
        "present.0.key: float32[batch, 2, capacity, 16]",
        "present.0.value: float32[batch, 2, capacity, 16]",
    ]


def test_logits_are_computed_where_they_are_asked_for(program: Program):
    after, _ = rewritten(MakeIncremental(), program, tolerance=1e-5)
    tokens = program.example_inputs[0]
    (whole,) = program.run(tokens)
    given = dict(zip((spec.name for spec in after.inputs), after.complete((tokens,)), strict=True))
    given["logit_positions"] = torch.tensor([-1, 3])
    logits = run_program(after)(given)["logits"]
    torch.testing.assert_close(logits, whole[:, [11, 3]], rtol=1e-5, atol=1e-5)


class InBlocks(nn.Module):
    """A head that came in as 4-bit codes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        codes = torch.randint(0, 256, (VOCABULARY, 1, WIDTH // 2), dtype=torch.uint8, generator=generator)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", torch.rand(VOCABULARY, 1, generator=generator))

    def forward(self, hidden: Tensor) -> Tensor:
        codes, scales = self.get_buffer("codes"), self.get_buffer("scales")
        logits: Tensor = quantized_linear(hidden, codes, scales, None, None, 4, WIDTH)
        return logits


@pytest.mark.parametrize(
    ("made", "operator"), [(None, "aten.linear.default"), (InBlocks, "regraft.quantized_linear.default")]
)
def test_the_head_reads_the_asked_for_positions_alone(made: type[nn.Module] | None, operator: str):
    torch.manual_seed(0)
    module = OneLayer()
    if made is not None:
        module.head = made()
    after, _ = rewritten(MakeIncremental(), program_of(module), tolerance=1e-5)
    (chosen,) = (node for node in after.graph.nodes if str(node.target) == "aten.index_select.default")
    (head,) = chosen.users
    assert head is after.output_node().args[0][0]
    assert str(head.target) == operator


def test_a_context_is_what_the_option_says_or_what_the_model_was_made_for(program: Program):
    known = program.copy()
    known.context_length = 50
    for option, length in ((None, 50), (30, 30)):
        after = known.copy()
        MakeIncremental(context=option).rewrite(after, context_of(after))
        assert after.context_length == length


class NotCausal(OneLayer):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value)


class LinearBias(OneLayer):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        steps = torch.arange(query.shape[2])
        distance = (steps[None] - steps[:, None]).float()
        causal = torch.where(distance > 0, float("-inf"), 0.0)
        return nn.functional.scaled_dot_product_attention(query, key, value, causal + distance * 0.25)


class WindowBeforeTheToken(OneLayer):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        steps = torch.arange(query.shape[2])
        earlier = steps[None] <= steps[:, None] - 1
        return nn.functional.scaled_dot_product_attention(query, key, value, earlier)


class NarrowValues(OneLayer):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.cat([super().attend(query, key, value[..., :8]), value[..., 8:]], dim=-1)


class OtherSequence(OneLayer):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.randn(1, HEADS, 5, WIDTH // HEADS))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        memory = self.memory.expand(query.shape[0], -1, -1, -1)
        seen = nn.functional.scaled_dot_product_attention(query, memory, memory)
        return super().attend(query, key, value) + seen


class RunningMean(OneLayer):
    def mix(self, hidden: Tensor) -> Tensor:
        counts = torch.ones_like(hidden[..., :1]).cumsum(1)
        return hidden.cumsum(1) / counts


class Convolution(OneLayer):
    def __init__(self) -> None:
        super().__init__()
        self.short = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH)

    def mix(self, hidden: Tensor) -> Tensor:
        padded = nn.functional.pad(hidden.transpose(1, 2), (2, 0))
        return hidden + self.short(padded).transpose(1, 2)


class MeanOfAll(OneLayer):
    def mix(self, hidden: Tensor) -> Tensor:
        return hidden - hidden.mean(1, keepdim=True)


class PreviousToken(OneLayer):
    def mix(self, hidden: Tensor) -> Tensor:
        return hidden + nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]


class ComputedPositions(OneLayer):
    def positions(self, input_ids: Tensor) -> Tensor:
        return torch.sin(torch.arange(input_ids.shape[1]).view(-1, 1) * self.places.weight[:1])


class CountedFromTheEnd(OneLayer):
    def positions(self, input_ids: Tensor) -> Tensor:
        count = input_ids.shape[1]
        return self.places((count - 1 - torch.arange(count))[None])


class NoAttention(OneLayer):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return query * key + value


class TwoOutputs(OneLayer):
    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().forward(input_ids)
        return logits, logits.amax(-1)


class Conditioned(OneLayer):
    def forward(self, input_ids: Tensor, style: Tensor) -> Tensor:
        return super().forward(input_ids) * style[:, None, None]


REFUSED = {
    NotCausal: "tokens attend to later ones",
    LinearBias: "a bias that is computed for whole sequences",
    NarrowValues: "its values are of another width",
    OtherSequence: "its keys are of another sequence",
    WindowBeforeTheToken: "its window leaves the token itself out",
    RunningMean: "mixes tokens in a way that no state carries",
    Convolution: "mixes tokens in a way that no state carries",
    MeanOfAll: "mixes tokens in a way that no state carries",
    PreviousToken: "mixes tokens in a way that no state carries",
    ComputedPositions: "reads the positions of tokens in a form that cannot follow the past",
    CountedFromTheEnd: "reads the positions of tokens in a form that cannot follow the past",
    NoAttention: "nothing in it carries a state",
    TwoOutputs: "it does not give one set of logits",
}


def refusal_of(program: Program) -> tuple[str, str]:
    """The reason and the node of a refusal that left the Program alone."""
    text = program.text()
    result = MakeIncremental().rewrite(program, context_of(program))
    assert not result.changed
    assert not program.states
    assert program.text() == text
    (refusal,) = result.refusals
    assert refusal.node is not None
    return refusal.reason, refusal.node


@pytest.mark.parametrize("variant", REFUSED, ids=lambda variant: variant.__name__)
def test_refusals_name_a_node(variant: type[OneLayer]):
    torch.manual_seed(0)
    program = program_of(variant())
    reason, node = refusal_of(program)
    assert REFUSED[variant] in reason
    assert node in {one.name for one in program.graph.nodes} | {spec.name for spec in program.outputs}


@pytest.mark.parametrize(
    ("variant", "node"),
    [(RunningMean, "cumsum"), (Convolution, "conv1d"), (MeanOfAll, "sub"), (PreviousToken, "slice_2")],
)
def test_what_mixes_tokens_is_found_by_reading_them_in_pieces(variant: type[OneLayer], node: str):
    torch.manual_seed(0)
    assert refusal_of(program_of(variant()))[1] == node


def test_an_input_that_has_no_part_in_decoding_is_refused():
    reason, node = refusal_of(program_of(Conditioned(), style=torch.ones(2)))
    assert (reason, node) == ("input style has no part in decoding", "style")


def test_a_fixed_number_of_tokens_is_refused():
    tokens = torch.randint(0, VOCABULARY, (2, 12))
    program = captured(OneLayer().eval(), input_ids=tokens)
    assert refusal_of(program) == ("its token count is fixed", "input_ids")


def test_a_model_that_reads_no_tokens_is_refused():
    program = captured(nn.Linear(4, 4), input=torch.ones(2, 4))
    assert refusal_of(program) == ("input input has no part in decoding", "input")


def test_the_pipeline_ends_with_the_reason():
    program = program_of(NotCausal())
    pipeline = Pipeline([MakeIncremental()], context_of(program))
    with pytest.raises(CompilerError, match="tokens attend to later ones") as caught:
        pipeline.run(program)
    assert caught.value.node == "scaled_dot_product_attention"
    assert "\n" not in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "reason"),
    [("bert", "tokens attend to later ones"), ("bloom", "a bias that is computed for whole sequences")],
)
def test_models_that_cannot_be_made_incremental(model: str, reason: str):
    program = passed(zoo.canonical(model), "fuse")
    assert reason in refusal_of(program)[0]
