"""Models that came as ONNX files are pruned as others are: the small one beside the one with masks, at two sizes."""

from __future__ import annotations

import pytest
from onnx_exports import exported, read
from pruning_checks import Reads, assert_pruned_is_masked, heads, neurons
from rewrite_checks import context_of

from compiler.frontends.onnx_model.reading import program_from_onnx
from compiler.passes.canonicalize import Canonicalize
from compiler.passes.fuse_attention import FuseAttention
from compiler.passes.pruning.prune_heads import PruneHeads
from compiler.passes.pruning.prune_layers import PruneLayers
from compiler.passes.pruning.prune_neurons import PruneNeurons
from compiler.program import Program
from compiler.pruning.unit_graft import UnitGraft
from compiler.sites import find_sites

pytestmark = pytest.mark.slow


def imported(name: str) -> Program:
    """The architecture from an ONNX file, as the passes meet it."""
    program = program_from_onnx(read(exported(name)), doing="reading", source=name)
    for rewrite in (Canonicalize(), FuseAttention()):
        rewrite.rewrite(program, context_of(program))
        program.refresh()
    return program


@pytest.mark.parametrize(
    ("name", "graft", "reads"),
    [
        ("bert", PruneNeurons(), neurons),
        ("bert", PruneHeads(ratio=0.5), heads),
        ("llama", PruneNeurons(), neurons),
        ("llama", PruneHeads(ratio=0.5), heads),
        ("resnet", PruneNeurons(), neurons),
    ],
    ids=lambda one: getattr(one, "name", None) or getattr(one, "__name__", str(one)),
)
def test_units_go(name: str, graft: UnitGraft, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_pruned_is_masked(graft, imported(name), reads, monkeypatch)


def test_layers_are_found() -> None:
    names = [site.name for site in find_sites(imported("bert"), PruneLayers.site_kinds)]
    assert names == ["encoder.layer.0", "encoder.layer.1"]
