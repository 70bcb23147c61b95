"""Factors for the input channels of linear layers: which layers share an input, and what can take the factor instead.

    linear(x, W1), linear(x, W2)  ==  linear(x / s, W1 * s), linear(x / s, W2 * s)

x / s costs nothing where x comes from a norm, whose weight and bias take 1 / s, or from a linear layer whose rows do,
read directly or as one factor of a gate, and only these layers read x. Elsewhere it is a product in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from compiler.patterns import aten, insert_call, is_call, only_user, value
from compiler.sites import Refusal, Site, find_sites

if TYPE_CHECKING:
    from compiler.program import Program

FOLDING_NORMS = ("layer_norm", "rms_norm")


@dataclass
class InputGroup:
    """Linear sites that read the same activation."""

    x: fx.Node
    sites: list[Site] = field(default_factory=list)


def input_groups(program: Program, mark: str) -> tuple[list[InputGroup], list[Refusal]]:
    """The linear sites by what they read, less those whose weights end in `mark`: they have their factors already."""
    groups: dict[fx.Node, InputGroup] = {}
    refusals: list[Refusal] = []
    for site in find_sites(program, ("linear",)):
        if isinstance(site, Refusal):
            refusals.append(site)
            continue
        weight = site.bindings["weight"]
        if weight.endswith(mark):
            continue
        readers = _readers(program, weight)
        if len(readers) > 1:
            others = ", ".join(reader.name for reader in readers if reader not in site.nodes)
            reason = f"its weight {weight} is shared with {others}"
            refusals.append(Refusal(reason, site.output.name, site.name, site.kind))
            continue
        groups.setdefault(site.inputs[0], InputGroup(site.inputs[0])).sites.append(site)
    return list(groups.values()), refusals


def _readers(program: Program, weight: str) -> list[fx.Node]:
    """Every node that reads the tensor `weight`, under this or another name."""
    tensor = program.weight(weight)
    holders = [
        node
        for node in program.graph.find_nodes(op="get_attr")
        if isinstance(node.meta.get("val"), Tensor) and program.weight(node) is tensor
    ]
    return [user for holder in holders for user in holder.users]


def stacked_weights(program: Program, group: InputGroup) -> Tensor:
    """The weights of the group, one below the other: [out, in] in float32."""
    stored = [(program.weight(site.bindings["weight"]).detach().float(), _by_rows(site)) for site in group.sites]
    return torch.cat([weight if by_rows else weight.T for weight, by_rows in stored])


def scale_inputs(program: Program, group: InputGroup, producer: Site | None, scales: Tensor) -> None:
    """Multiply the weights of the group by scales [in], and what they read by 1 / scales."""
    if producer is None:
        _insert_product(program, group, 1 / scales)
    else:
        _scale_output(program, producer, 1 / scales)
    for site in group.sites:
        _scale(program, site.bindings["weight"], scales if _by_rows(site) else scales[:, None])


def _by_rows(site: Site) -> bool:
    """Whether a linear site stores its weight as [out, in]."""
    return not site.bindings["weight_transposed"]


def producer_of(program: Program, group: InputGroup) -> Site | None:
    """The norm or linear site before x whose weights can take a factor for each feature; None where there is none."""
    x = group.x
    if set(x.users) != {site.output for site in group.sites}:
        return None
    gated = is_call(x, aten.mul.Tensor)
    candidates = [node for node in x.all_input_nodes if only_user(node) is x] if gated else [x]
    for site in find_sites(program, ("linear", "norm")):
        if isinstance(site, Site) and site.output in candidates and _takes_factor(program, site):
            return site
    return None


def _takes_factor(program: Program, site: Site) -> bool:
    names = [name for name in (site.bindings["weight"], site.bindings["bias"]) if name is not None]
    if site.bindings["weight"] is None or any(len(_readers(program, name)) > 1 for name in names):
        return False
    if site.kind == "linear":
        return True
    return site.bindings["norm"] in FOLDING_NORMS and len(site.nodes) == 1 and not site.bindings.get("weight_offset")


def _scale_output(program: Program, site: Site, factor: Tensor) -> None:
    """Multiply what a norm or linear site gives by `factor` [features], through its weights."""
    column = site.kind == "linear" and _by_rows(site)
    _scale(program, site.bindings["weight"], factor[:, None] if column else factor)
    if site.bindings["bias"] is not None:
        _scale(program, site.bindings["bias"], factor)


def _insert_product(program: Program, group: InputGroup, factor: Tensor) -> None:
    """Put mul(x, factor) between x and the sites of the group."""
    outputs = {site.output for site in group.sites}
    first = next(node for node in program.graph.nodes if node in outputs)
    owner = group.sites[0].bindings["weight"].rpartition(".")[0]
    name = program.free_name(f"{owner}.smoothing" if owner else "smoothing")
    dtype = value(group.x).dtype
    program.set_weight(name, factor.to(dtype))
    with program.graph.inserting_before(first):
        stored = program.graph.get_attr(name)
    stored.meta["val"] = value(group.x).new_empty(factor.shape)
    product = insert_call(first, aten.mul.Tensor, group.x, stored)
    for output in outputs:
        output.replace_input_with(group.x, product)


def _scale(program: Program, name: str, factor: Tensor) -> None:
    weight = program.weight(name)
    program.set_weight(name, (weight.detach().float() * factor).to(weight.dtype))


def mark_weights(program: Program, names: set[str], mark: str) -> None:
    """Rename weights that have their factors, so that a second run knows them."""
    for node in program.graph.find_nodes(op="get_attr"):
        if node.target in names:
            marked = f"{node.target}{mark}"
            program.set_weight(marked, program.weight(node))
            node.target = marked
