"""A gate behind attention: neutral at first, then what the formula says, and still attention for other passes."""

from __future__ import annotations

import pytest
import torch
import zoo
from grafted_attention import grafted, token_mixers
from rewrite_checks import context_of

from compiler import options
from compiler.errors import CompilerError
from compiler.passes.attention.gated_attention import GatedAttention, joined_mask
from compiler.rewriting import Replacement
from compiler.sites import find_sites


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_it_starts_neutral_and_leaves_attention_sites(name: str):
    program = zoo.canonical(name)
    after, result = grafted(GatedAttention(), program)
    assert result.changed == tuple(site.name for site in token_mixers(program))
    assert len(find_sites(after, ("attention",))) == len(find_sites(program, ("attention",)))
    for found, expected in zip(after.run(*program.example_inputs), program.run(*program.example_inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.slow
def test_a_second_gate_is_refused():
    after, first = grafted(GatedAttention(), zoo.canonical("llama"))
    again, second = grafted(GatedAttention(gates="head"), after)
    assert (len(first.changed), second.changed) == (2, ())
    assert {refusal.reason for refusal in second.refusals} == {"a gate stands behind it already"}
    assert again.text() == after.text()


@pytest.mark.slow
@pytest.mark.parametrize("gates", ["element", "head"])
def test_a_trained_gate_scales_what_attention_gives(gates: str):
    program = zoo.canonical("llama")
    site = token_mixers(program)[0]
    proposal = GatedAttention(gates=gates).propose(site, program, context_of(program))
    assert isinstance(proposal, Replacement)
    assert proposal.heal == ("gate.*",)
    module = proposal.module
    generator = torch.Generator().manual_seed(0)
    hidden, raw_query, raw_key, query, key, value, mask = (
        torch.randn([2 if isinstance(size, torch.SymInt) and at == 0 else 5 if isinstance(size, torch.SymInt) else size
                     for at, size in enumerate(node.meta["val"].shape)], generator=generator)
        for node in site.inputs
    )  # fmt: skip
    mask = mask > 0
    mask[..., 0] = True
    inputs = (hidden, raw_query, raw_key, query, key, value, mask)
    with torch.no_grad():
        plain = module(*inputs)
        gate = module.gate
        gate.weight.normal_(generator=generator)
        gate.bias.normal_(generator=generator)
        gated = module(*inputs)
        per_head = 8 if gates == "element" else 1
        for head in range(4):
            rows = slice(head * per_head, (head + 1) * per_head)
            factor = 2 / (1 + torch.exp(-(hidden @ gate.weight[rows].T + gate.bias[rows])))
            torch.testing.assert_close(gated[:, head], plain[:, head] * factor)


def test_masks_become_one():
    chosen = torch.tensor([[True, False], [True, True]])
    added = torch.tensor([[0.5, 1.0], [2.0, 3.0]])
    assert joined_mask((), torch.float32) is None
    assert joined_mask((chosen,), torch.float32) is chosen
    torch.testing.assert_close(joined_mask((added, added), torch.float32), 2 * added)
    expected = added.masked_fill(~chosen, -torch.inf)
    torch.testing.assert_close(joined_mask((chosen, added, chosen), torch.float32), expected)


def test_gates_that_cannot_be():
    with pytest.raises(CompilerError, match="none of element, head"):
        options.build(GatedAttention, {"gates": "token"})
