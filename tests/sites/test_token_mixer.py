"""Self-attention with what surrounds it: on the zoo every attention is such a site, or is refused by name."""

from __future__ import annotations

import pytest
import zoo
from rewrite_checks import context_of

from compiler.passes.fuse_rotary import FuseRotary
from compiler.sites import Refusal, Site, find_sites

OTHER_SEQUENCE = "its keys are of another sequence"
ROTATED = {"llama", "phi3", "gpt_neox", "modernbert"}
KEPT = ("llama", "phi3", "gpt_neox", "gpt2", "modernbert", "t5", "vit")


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_every_self_attention_is_a_site_and_every_cross_attention_a_refusal(name: str):
    program = zoo.canonical(name)
    found = find_sites(program, ("token-mixer",))
    attention = [site for site in find_sites(program, ("attention",)) if isinstance(site, Site)]
    assert [one.name for one in found] == [site.name for site in attention]
    sites = [one for one in found if isinstance(one, Site)]
    crossing = [one for one in found if isinstance(one, Refusal)]
    assert [one.reason for one in crossing] == [OTHER_SEQUENCE] * (2 if name == "t5" else 0)
    for site in sites:
        hidden, raw_query, raw_key, query, key, value = (node.meta["val"] for node in site.inputs[:6])
        assert list(hidden.shape[1:]) == [query.shape[2], zoo.HIDDEN]
        assert (raw_query.shape, raw_key.shape) == (query.shape, key.shape)
        assert site.bindings["hidden_width"] == zoo.HIDDEN
        assert site.bindings["value_dim"] == value.shape[3]
        assert site.bindings["rotary"] == (name in ROTATED)
        assert (site.inputs[1] is not site.inputs[3]) == (name in ROTATED)


@pytest.mark.slow
def test_a_fused_rotary_embedding_gives_the_same_site():
    program = zoo.canonical("llama").copy()
    before = [site.inputs[1:3] for site in find_sites(program, ("token-mixer",)) if isinstance(site, Site)]
    names = [[node.name for node in pair] for pair in before]
    FuseRotary().rewrite(program, context_of(program))
    after = [site for site in find_sites(program, ("token-mixer",)) if isinstance(site, Site)]
    assert [[node.name for node in site.inputs[1:3]] for site in after] == names
    assert all(site.bindings["rotary"] for site in after)


@pytest.mark.slow
def test_windows_of_images_are_refused():
    found = find_sites(zoo.canonical("swin"), ("token-mixer",))
    assert all(isinstance(one, Refusal) and "is not [batch, tokens, width]" in one.reason for one in found)
    assert len(found) == 4
