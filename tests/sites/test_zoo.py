"""On 26 architectures: numbers kept, and as many attention and feed-forward sites as the configuration says."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
import zoo
from rewrite_checks import context_of
from torch import Tensor

from compiler.passes.canonicalize import Canonicalize
from compiler.passes.fuse_attention import FuseAttention
from compiler.program import Program
from compiler.registry import Registry
from compiler.rewriting import Rewrite
from compiler.sites import KINDS, Refusal, Site, find_sites

LARGER = (3, 17)
ROUNDING = 2e-6
CAUSAL = {name for name in zoo.names() if zoo.entry(name).role == "causal-lm"}
every_architecture = pytest.mark.parametrize("name", zoo.names())
pytestmark = pytest.mark.slow


@functools.cache
def fused(name: str) -> Program:
    program = zoo.canonical(name).copy()
    FuseAttention().rewrite(program, context_of(program))
    return program


@functools.cache
def expected(name: str, batch: int, sequence: int) -> tuple[Tensor, ...]:
    """What the module itself gives."""
    with torch.no_grad():
        output = zoo.model(name).module(**zoo.entry(name).inputs_at(batch, sequence))
    return output if isinstance(output, tuple) else (output,)


def assert_keeps_numbers(program: Program, name: str) -> None:
    for size in ((2, 12), LARGER):
        inputs = zoo.entry(name).inputs_at(*size)
        for found, wanted in zip(program.run(*inputs.values()), expected(name, *size), strict=True):
            torch.testing.assert_close(found, wanted, rtol=ROUNDING, atol=ROUNDING * float(wanted.abs().max()))


def counts(program: Program) -> dict[str, int]:
    found = Counter(site.kind for site in find_sites(program) if isinstance(site, Site))
    return {kind: found[kind] for kind in ("attention", "feed-forward")}


def sites(program: Program, kind: str) -> Sequence[Site]:
    return [site for site in find_sites(program, (kind,)) if isinstance(site, Site)]


def test_the_zoo_is_what_the_issue_asks_for():
    asked = (
        "llama mistral qwen2 qwen3 gemma gemma2 phi3 gpt2 gpt_neox opt bloom falcon mixtral bert roberta distilbert "
        "modernbert t5 bart whisper vit dinov2 clip swin convnext resnet"
    )
    assert zoo.names() == asked.split()


@every_architecture
def test_canonicalize_keeps_the_numbers_and_finds_nothing_the_second_time(name: str):
    program = zoo.canonical(name).copy()
    assert_keeps_numbers(program, name)
    before = program.text()
    assert Canonicalize().rewrite(program, context_of(program)).changed == ()
    assert program.text() == before


@every_architecture
def test_sites_are_as_many_as_the_configuration_says(name: str):
    assert counts(zoo.canonical(name)) == zoo.model(name).counts


@every_architecture
def test_nothing_nearly_matches_unexplained(name: str):
    """Token mixers are less than attention: `test_token_mixer` says what they refuse."""
    kinds = [kind for kind in KINDS if kind not in zoo.NARROW_KINDS]
    assert [refusal for refusal in find_sites(zoo.canonical(name), kinds) if isinstance(refusal, Refusal)] == []


@every_architecture
def test_fuse_attention_keeps_numbers_and_sites(name: str):
    program = fused(name)
    assert_keeps_numbers(program, name)
    assert counts(program) == zoo.model(name).counts
    forms = [site.bindings["form"] for site in sites(program, "attention")]
    assert forms == ["regraft"] * zoo.model(name).counts["attention"]
    assert FuseAttention().rewrite(program, context_of(program)).changed == ()


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "t5", "swin", "mixtral"])
def test_a_fused_program_exports_with_its_dims_dynamic(name: str):
    exported = fused(name).export()
    inputs = zoo.entry(name).inputs_at(*LARGER)
    for found, wanted in zip(exported.module()(*inputs.values()), expected(name, *LARGER), strict=True):
        torch.testing.assert_close(found, wanted, rtol=ROUNDING, atol=ROUNDING * float(wanted.abs().max()))


@every_architecture
def test_names_are_module_paths_of_the_user(name: str):
    found = [site for site in find_sites(zoo.canonical(name)) if isinstance(site, Site)]
    for kind in KINDS:
        of_kind = [site.name for site in found if site.kind == kind]
        assert len(set(of_kind)) == len(of_kind)
    modules = {path.removeprefix("model.").removeprefix("model.") for path, _ in zoo.model(name).module.named_modules()}
    strange = [site.name for site in found if site.name.removesuffix(".feed_forward").partition("@")[0] not in modules]
    assert strange == []


@pytest.mark.parametrize("name", sorted(CAUSAL))
def test_language_models_are_proven_causal(name: str):
    assert all(site.bindings["causal"] for site in sites(zoo.canonical(name), "attention"))


@pytest.mark.parametrize(
    ("name", "bindings"),
    [
        ("llama", {"mask": "causal+padding", "head_count": 4, "kv_head_count": 2, "head_dim": 8, "softcap": 0.0}),
        ("mistral", {"mask": "window+padding", "window": (1 - zoo.WINDOW, 0), "causal": True}),
        ("gemma2", {"form": "eager", "softcap": 5.0, "scale": 20**-0.5, "kv_head_count": 2, "head_dim": 16}),
        ("bloom", {"form": "eager", "mask": "causal+padding+bias", "merged_masks": (False, True)}),
        ("falcon", {"kv_head_count": 1, "head_count": 4}),
        ("modernbert", {"mask": "padding", "causal": False, "query": "layers.0.attn.Wqkv"}),
        ("whisper", {"mask": "none"}),
        ("swin", {"mask": "bias"}),
        ("t5", {"mask": "padding+bias", "scale": 1.0}),
        ("vit", {"mask": "none", "output": "layers.0.attention.o_proj"}),
        ("bert", {"key": "encoder.layer.0.attention.self.key", "output": "encoder.layer.0.attention.output.dense"}),
    ],
)
def test_what_an_attention_site_says(name: str, bindings: dict[str, object]):
    first = sites(zoo.canonical(name), "attention")[0]
    assert {key: first.bindings[key] for key in bindings} == bindings


@pytest.mark.parametrize(
    ("name", "form", "activation"),
    [
        ("llama", "gated", "silu"),
        ("gemma", "gated", "gelu_tanh"),
        ("phi3", "gated", "silu"),
        ("modernbert", "gated", "gelu"),
        ("t5", "gated", "gelu_tanh"),
        ("mixtral", "experts", "silu"),
        ("gpt2", "plain", "gelu_tanh"),
        ("bloom", "plain", "gelu_tanh"),
        ("opt", "plain", "relu"),
        ("clip", "plain", "quick_gelu"),
        ("convnext", "plain", "gelu"),
    ],
)
def test_what_a_feed_forward_site_says(name: str, form: str, activation: str):
    for site in sites(zoo.canonical(name), "feed-forward"):
        assert (site.bindings["form"], site.bindings["activation"]) == (form, activation)


def test_masks_that_are_always_true_are_dropped():
    for name in ("vit", "dinov2"):
        assert all(len(site.inputs) == 4 for site in sites(zoo.canonical(name), "attention"))
        assert all(len(site.inputs) == 3 for site in sites(fused(name), "attention"))


def test_masks_that_are_only_causal_become_a_flag():
    for name in ("bart", "whisper"):
        flagged = [site for site in sites(fused(name), "attention") if site.bindings["is_causal"]]
        assert [site.name for site in flagged] == ["decoder.layers.0.self_attn", "decoder.layers.1.self_attn"]
        assert all(len(site.inputs) == 3 for site in flagged)


@pytest.mark.parametrize("name", ["vit", "gemma2", "gpt2", "bart", "t5", "resnet"])
def test_sites_keep_their_names_through_every_shipped_rewrite(name: str):
    registry = Registry(entry_points=False)
    program = zoo.canonical(name).copy()
    before = [(site.kind, site.name) for site in find_sites(program)]
    for pass_name in [family for key in ("simplify", "fuse") for family in registry.pipelines()[key].split(",")]:
        rewrite = registry.passes()[pass_name]()
        assert isinstance(rewrite, Rewrite)
        rewrite.rewrite(program, context_of(program))
    after = [(site.kind, site.name) for site in find_sites(program)]
    norms_gone = name == "resnet"  # batch norms are folded into the convolutions before them
    assert after == [one for one in before if not (norms_gone and one[0] == "norm")]
    assert all(len(site.inputs) == 3 for site in sites(program, "attention")) or name != "vit"
