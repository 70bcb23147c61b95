"""A gate behind attention: neutral at first, then what the formula says, and still attention for other passes."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import zoo
from rewrite_checks import context_of

from compiler import options
from compiler.errors import CompilerError
from compiler.grafting import apply_graft
from compiler.passes.attention.gated_attention import GatedAttention, joined_mask
from compiler.passes.canonicalize import Canonicalize
from compiler.program import Program
from compiler.rewriting import PassResult, Replacement
from compiler.sites import Site, find_sites


@functools.cache
def canonical(name: str) -> Program:
    program = zoo.program(name)
    Canonicalize().rewrite(program, context_of(program))
    return program


def grafted(program: Program, **values: Any) -> tuple[Program, PassResult]:
    return apply_graft(GatedAttention(**values), program, (), context_of(program))


def token_mixers(program: Program) -> list[Site]:
    return [one for one in find_sites(program, ("token-mixer",)) if isinstance(one, Site)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_it_starts_neutral_and_leaves_attention_sites(name: str):
    program = canonical(name)
    after, result = grafted(program)
    assert result.changed == tuple(site.name for site in token_mixers(program))
    assert len(find_sites(after, ("attention",))) == len(find_sites(program, ("attention",)))
    for found, expected in zip(after.run(*program.example_inputs), program.run(*program.example_inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("gates", ["element", "head"])
def test_a_trained_gate_scales_what_attention_gives(gates: str):
    program = canonical("llama")
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
