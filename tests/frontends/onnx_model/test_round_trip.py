"""Exported to ONNX and read again, an architecture shows the sites of its torch original, under the same names."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import zoo
from onnx_exports import exported, exported_encoder, read, written_by_us
from rewrite_checks import context_of
from torch import Tensor

from compiler.frontends import LoadOptions
from compiler.frontends.onnx_model.reading import program_from_onnx
from compiler.frontends.transformers_folder import TransformersFolder
from compiler.program import Program
from compiler.registry import Registry
from compiler.rewriting import Rewrite
from compiler.sites import KINDS, Refusal, Site, find_sites

SIZES = ((2, 12), (3, 17))
ROUNDING = 1e-5
OURS = ("bert", "llama", "gpt2", "t5")
STORED = {"weight", "bias", "up", "gate", "down", "up_bias", "gate_bias", "down_bias", "weight_transposed"}
"""Bindings that say where weights are kept: exporters rename and transpose some of them."""
ROUTING = {"routed_by"}
"""Experts are given tokens sorted by expert, or one by one: the older way is the one that can be exported."""
FOLDED = {"clip": {"vision_model.embeddings.position_embedding"}, "whisper": {"encoder.embed_positions"}}
"""Embeddings of fixed positions, which exporters compute."""
every_architecture = pytest.mark.parametrize("name", zoo.names())
pytestmark = pytest.mark.slow


@functools.cache
def raising() -> tuple[Rewrite, ...]:
    """canonicalize, and the family of passes that fuse."""
    registry = Registry(entry_points=False)
    names = ["canonicalize", *registry.pipelines()["fuse"].split(",")]
    passes = [registry.passes()[name]() for name in names]
    assert all(isinstance(one, Rewrite) for one in passes)
    return tuple(one for one in passes if isinstance(one, Rewrite))


def raised(program: Program) -> Program:
    for rewrite in raising():
        rewrite.rewrite(program, context_of(program))
    return program


@functools.cache
def original(name: str) -> Program:
    return raised(zoo.canonical(name).copy())


@functools.cache
def round_trip(name: str) -> Program:
    return raised(program_from_onnx(read(exported(name)), doing="reading", source=name))


def sites(program: Program, kind: str) -> dict[str, Site]:
    return {site.name: site for site in find_sites(program, (kind,)) if isinstance(site, Site)}


def promised(site: Site) -> dict[str, Any]:
    """What a site says of what it computes, whichever way it is written."""
    return {key: item for key, item in site.bindings.items() if key not in STORED | ROUTING}


def assert_says_the_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for key, item in wanted.items():
        assert found[key] == (pytest.approx(item) if isinstance(item, float) else item), key


def answers(model: bytes, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What ONNX Runtime gives for the exported model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model, options)
    return [torch.from_numpy(one) for one in session.run(None, {key: one.numpy() for key, one in inputs.items()})]


@every_architecture
def test_attention_and_feed_forward_sites_are_those_of_the_original(name: str):
    for kind in ("attention", "feed-forward"):
        found, wanted = sites(round_trip(name), kind), sites(original(name), kind)
        assert list(found) == list(wanted)
        assert len(found) == zoo.model(name).counts[kind]
        for site_name, site in wanted.items():
            assert_says_the_same(promised(found[site_name]), promised(site))


@every_architecture
def test_linear_layers_embeddings_and_norms_keep_their_names(name: str):
    for kind in ("linear", "embedding", "norm"):
        assert set(sites(original(name), kind)) - set(sites(round_trip(name), kind)) <= FOLDED.get(name, set())


@every_architecture
def test_nothing_nearly_matches_unexplained(name: str):
    kinds = [kind for kind in KINDS if kind not in zoo.NARROW_KINDS]
    assert [one for one in find_sites(round_trip(name), kinds) if isinstance(one, Refusal)] == []


@every_architecture
def test_numbers_are_those_of_onnx_runtime_at_two_sizes(name: str):
    for size in SIZES:
        inputs = zoo.entry(name).inputs_at(*size)
        for found, wanted in zip(round_trip(name).run(*inputs.values()), answers(exported(name), inputs), strict=True):
            torch.testing.assert_close(found, wanted, rtol=ROUNDING, atol=ROUNDING * float(wanted.abs().max()))


@pytest.mark.parametrize("name", OURS)
def test_what_our_backend_writes_keeps_its_sites_too(name: str):
    program = raised(program_from_onnx(read(written_by_us(name)), doing="reading", source=name))
    for kind in ("attention", "feed-forward", "linear", "norm"):
        assert list(sites(program, kind)) == list(sites(original(name), kind))


def test_the_real_minilm_shows_the_sites_of_its_folder(minilm_folder: Path):
    folder = TransformersFolder().load(str(minilm_folder), LoadOptions())
    imported = program_from_onnx(read(exported_encoder(minilm_folder)), doing="reading", source="minilm")
    wanted, found = raised(folder), raised(imported)
    for kind in ("attention", "feed-forward", "linear", "embedding", "norm"):
        assert list(sites(found, kind)) == list(sites(wanted, kind))
    for name, site in sites(wanted, "attention").items():
        assert_says_the_same(promised(sites(found, "attention")[name]), promised(site))
    assert [len(sites(found, kind)) for kind in ("attention", "feed-forward", "linear")] == [6, 6, 36]
