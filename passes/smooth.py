"""linear(x, W)  ->  linear(x / s, W * s): activations that are easier to quantize, for somewhat harder weights

Before:  x = layer_norm(h, g, c);  linear(x, W1);  linear(x, W2)
After:   x = layer_norm(h, g / s, c / s);  linear(x, W1 * s);  linear(x, W2 * s)
         where x has other users, or nothing before it takes the scale:  mul(x, 1 / s) in front of the linears
Shapes:  x [..., in], s [in], W [out, in].
Exact:   up to rounding: 1e-6 in float32, 1e-2 in bfloat16.
Refuses: sites whose inputs calibration data does not reach; weights that other nodes share; inputs that are not finite;
         inputs that smoothing does not ease; with fold-only, inputs whose scale nothing takes.
Source:  Xiao et al. 2022, arXiv:2211.10438, eq. 4: s = max|x| ** alpha / max|W| ** (1 - alpha), with the mean over
         samples of max|x|, and alpha chosen for each input where it is left open.

The scale goes into the weight and bias of a norm, or into the rows of a linear whose output is read directly or as one
factor of a gate, when only these linear sites read the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor, fx

from compiler.calibration import ActivationStatistics, activation_statistics
from compiler.hookspecs import hookimpl
from compiler.patterns import aten, insert_call, is_call, only_user, value
from compiler.program import Program
from compiler.quantization.smoothing import WORTHWHILE, WORTHWHILE_PRODUCT, smoothing_scales
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal, Site, find_sites

MARK = "_smoothed"
"""Ends the name of every weight that a scale went into, so that a second run leaves it as it is."""
FOLDING_NORMS = ("layer_norm", "rms_norm")


@dataclass(frozen=True)
class Smooth(Rewrite):
    """Moves magnitude from activations to weights, channel by channel."""

    name: ClassVar[str] = "smooth"

    alpha: Annotated[float | None, "part of the difficulty that moves, 0 to 1; none: chosen for each input"] = None
    multiply: Annotated[bool, "multiply by 1/s where nothing before the input takes the scale"] = True

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha={self.alpha:g} is not between 0 and 1")

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Smooth the inputs of linear sites in place. `changed` names the sites."""
        groups, refusals = _groups(program)
        statistics = activation_statistics(program, [group.x for group in groups], context.data)
        changed: list[Site] = []
        for group in groups:
            reason = self._smooth(program, group, statistics.get(group.x.name))
            if reason is None:
                changed += group.sites
            else:
                refusals += [Refusal(reason, site.output.name, site.name, site.kind) for site in group.sites]
        _mark(program, {site.bindings["weight"] for site in changed})
        if changed:
            program.refresh()
        return PassResult(changed=tuple(site.name for site in changed), refusals=tuple(refusals))

    def _smooth(self, program: Program, group: _Group, statistics: ActivationStatistics | None) -> str | None:
        """Smooth one activation, or say why not."""
        if statistics is None:
            return "no calibration data reaches its input"
        weights = torch.cat([_rows(program, site) for site in group.sites])
        producer = _producer(program, group)
        worthwhile = WORTHWHILE_PRODUCT if producer is None else WORTHWHILE
        scales, reason = smoothing_scales(statistics, weights, self.alpha, worthwhile)
        if scales is None:
            return reason
        if producer is not None:
            _scale_output(program, producer, 1 / scales)
        elif self.multiply:
            _insert_product(program, group, 1 / scales)
        else:
            return "nothing before its input takes the scale"
        for site in group.sites:
            _scale(program, site.bindings["weight"], scales if _by_rows(site) else scales[:, None])
        return None


@dataclass
class _Group:
    """Linear sites that read the same activation."""

    x: fx.Node
    sites: list[Site] = field(default_factory=list)


def _groups(program: Program) -> tuple[list[_Group], list[Refusal]]:
    groups: dict[fx.Node, _Group] = {}
    refusals: list[Refusal] = []
    for site in find_sites(program, ("linear",)):
        if isinstance(site, Refusal):
            refusals.append(site)
            continue
        weight = site.bindings["weight"]
        if weight.endswith(MARK):
            continue
        readers = _readers(program, weight)
        if len(readers) > 1:
            others = ", ".join(reader.name for reader in readers if reader not in site.nodes)
            reason = f"its weight {weight} is shared with {others}"
            refusals.append(Refusal(reason, site.output.name, site.name, site.kind))
            continue
        groups.setdefault(site.inputs[0], _Group(site.inputs[0])).sites.append(site)
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


def _rows(program: Program, site: Site) -> Tensor:
    """The site's weight as [out, in] in float32."""
    weight = program.weight(site.bindings["weight"]).detach().float()
    return weight.T if site.bindings["weight_transposed"] else weight


def _by_rows(site: Site) -> bool:
    """Whether a linear site stores its weight as [out, in]."""
    return not site.bindings["weight_transposed"]


def _producer(program: Program, group: _Group) -> Site | None:
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


def _insert_product(program: Program, group: _Group, factor: Tensor) -> None:
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


def _mark(program: Program, names: set[str]) -> None:
    """Rename weights that were smoothed, so that a second run knows them."""
    for node in program.graph.find_nodes(op="get_attr"):
        if node.target in names:
            marked = f"{node.target}{MARK}"
            program.set_weight(marked, program.weight(node))
            node.target = marked


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [Smooth]
