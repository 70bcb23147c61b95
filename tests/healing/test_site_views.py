"""A site cut out of its graph gives the same numbers, and keeps no more than it must."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
from healing_models import tiny_program
from torch import Tensor

from compiler.healing.activations import Activations, recorded
from compiler.healing.frozen_graph import WeightForms, frozen_graph
from compiler.healing.site_views import run_slice, site_view
from compiler.program import Program
from compiler.sites import Site, find_sites


def sites(program: Program, kind: str) -> list[Site]:
    return [one for one in find_sites(program, (kind,)) if isinstance(one, Site)]


def check(program: Program, site: Site, inputs: tuple[Tensor, ...]) -> int:
    """The slices against a run of the whole Program; how many values are kept."""
    module = frozen_graph(program, WeightForms(half=False))
    view = site_view(module, site)
    known = dict(zip([one.name for one in program.placeholders()], inputs, strict=True))
    kept = view.kept(known)
    known |= recorded(module, inputs, kept)
    wanted = recorded(program.graph_module, inputs, {one.name for one in (*site.inputs, site.output)})
    found = run_slice(view.prepare, *(known[name] for name in view.read))
    for node, value in zip(site.inputs, found, strict=True):
        torch.testing.assert_close(value, wanted[node.name])
    beside = [known[name] for name in view.beside]
    assert len(run_slice(view.project, wanted[site.output.name], *beside)) == 1
    return len(kept)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
@pytest.mark.parametrize("kind", ["attention", "linear", "feed-forward"])
def test_slices_give_what_the_program_gives(name: str, kind: str) -> None:
    program = zoo.program(name)
    inputs = tuple(zoo.entry(name).inputs_at(2, 12)[spec.name] for spec in program.inputs)
    for site in sites(program, kind)[:3]:
        check(program, site, inputs)


def test_a_site_that_reads_an_input_of_the_program() -> None:
    program = zoo.program("llama")
    inputs = tuple(zoo.entry("llama").inputs_at(2, 12)[spec.name] for spec in program.inputs)
    (table,) = sites(program, "embedding")
    assert check(program, table, inputs) == 1


def test_what_follows_from_the_first_input_is_not_kept() -> None:
    program = zoo.program("llama")
    inputs = tuple(zoo.entry("llama").inputs_at(2, 12)[spec.name] for spec in program.inputs)
    last = sites(program, "token-mixer")[-1]
    assert len(last.inputs) >= 6
    assert check(program, last, inputs) == 2


def test_errors_are_measured_after_the_output_projection() -> None:
    program = tiny_program()
    module = frozen_graph(program, WeightForms(half=False))
    view = site_view(module, sites(program, "attention")[0])
    output = torch.randn(1, 2, 5, 8)
    assert view.beside == ("input_ids",)
    (projected,) = run_slice(view.project, output, torch.zeros(1, 5, dtype=torch.int64))
    weight = program.weight("blocks.0.output.weight")
    torch.testing.assert_close(projected, output.transpose(1, 2).reshape(1, 5, 16) @ weight.T)


def test_activations_are_kept_once_in_half_precision(tmp_path: Path) -> None:
    program = tiny_program()
    site = sites(program, "attention")[1]
    names = [site.inputs[0].name, site.output.name]
    ids = torch.randint(0, 48, (1, 7))
    store = Activations(tmp_path, program.graph_module, names)
    size = store.capture(3, (ids,))
    expected = recorded(program.graph_module, (ids,), names)
    found = store.read(3, names)
    for name in names:
        torch.testing.assert_close(found[name], expected[name].half().float(), rtol=0, atol=0)
    stamp = next(tmp_path.iterdir()).stat().st_mtime_ns
    assert store.capture(3, (ids,)) == size
    assert next(tmp_path.iterdir()).stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == ["000003.safetensors"]
    store.clear()
    assert not list(tmp_path.iterdir())


def test_values_that_float16_cannot_hold_are_bfloat16(tmp_path: Path) -> None:
    program = tiny_program()
    program.set_weight("head.weight", program.weight("head.weight") * 1e6)
    name = str(program.output_node().args[0][0])
    ids = torch.randint(0, 48, (1, 7))
    store = Activations(tmp_path, program.graph_module, [name])
    store.capture(0, (ids,))
    torch.testing.assert_close(store.read(0, [name])[name], program.run(ids)[0], rtol=1e-2, atol=1.0)
