"""linear(linear(x, A), B)  ->  linear(x, B A), where one product is measured to be faster than two

Before:  linear -> linear, with nothing between them                  After:  linear
Shapes:  x [..., in], A [rank, in], B [out, rank]; B A [out, in]; biases a and b become B a + b.
Exact up to rounding: 1e-5 of the largest output in float32, 2e-2 in bfloat16; B A is computed in float64. At one token
         a call reads all weights, so that a pair with about as many numbers as its product is slower than it, while a
         pair of a small rank is faster, and takes fewer bytes. So each pair is timed beside its product, alone, by the
         backend that the compile lowers with, and nothing is merged where nothing is lowered.
Refuses: a first product with other users; weights that are no floats; pairs that are not slower, or cannot be timed.
Source:  Wei et al. 2024, arXiv:2406.16450 (structured layers merged before they decode).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor, fx, nn

from compiler.evidence.measured_gain import LEAST_GAIN, check_tokens, measured_gain, told
from compiler.hookspecs import hookimpl
from compiler.patterns import aten, insert_call, is_call, only_user, replace, value
from compiler.program import Program
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal, Site
from compiler.sites.linear import match_linear


@dataclass(frozen=True)
class PreMerge(Rewrite):
    """Multiplies pairs of products out where that is faster."""

    name: ClassVar[str] = "pre-merge"
    requires: ClassVar[tuple[str, ...]] = ("canonicalize",)

    tokens: Annotated[int, "tokens of a call at which pair and product are timed: 1 is decoding"] = 1

    def __post_init__(self) -> None:
        check_tokens("tokens", self.tokens)

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite in place. `changed` names the second products."""
        changed: list[str] = []
        refusals: list[Refusal] = []
        for node in list(program.graph.nodes):
            pair = _pair(node)
            if pair is None:
                continue
            context.progress(f"{self.name}: {pair.second.name}")
            merged = pair.merged(program)
            reason = merged if isinstance(merged, str) else self._obstacle(program, pair, merged, context)
            if isinstance(merged, str) or reason is not None:
                refusals.append(Refusal(str(reason), node.name, pair.second.name, "linear"))
                continue
            _store(program, pair, merged)
            changed.append(pair.second.name)
        if changed:
            program.refresh()
        return PassResult(changed=tuple(changed), refusals=tuple(refusals))

    def _obstacle(self, program: Program, pair: _Pair, merged: nn.Linear, context: PassContext) -> str | None:
        """Why the pair stays, as far as speed says so."""
        gain = measured_gain(program, pair.as_site(), merged, self.tokens, context)
        if gain is None:
            return "it cannot be timed: nothing is lowered, or not this alone"
        return None if gain >= LEAST_GAIN else f"one product would be {told(gain, self.tokens)}"


@dataclass(frozen=True)
class _Pair:
    """Two linear sites, the second one reading what the first one gives."""

    first: Site
    second: Site

    def as_site(self) -> Site:
        """Both as one."""
        nodes = (*self.first.nodes, *self.second.nodes)
        return Site("linear", self.second.name, nodes, self.first.inputs, self.second.output, {})

    def merged(self, program: Program) -> nn.Linear | str:
        """The product of both, or why there is none."""
        if only_user(self.first.output) is None:
            return "the first product has other users"
        a, b = (_stored(program, site) for site in (self.first, self.second))
        if not (a.is_floating_point() and a.dtype == b.dtype):
            return "the weights are no floats of one dtype"
        inner, outer = (
            None if (name := site.bindings["bias"]) is None else program.weight(name).detach().double()
            for site in (self.first, self.second)
        )
        moved = None if inner is None else b.double() @ inner
        bias = outer if moved is None else moved if outer is None else moved + outer
        linear = nn.Linear(a.shape[1], b.shape[0], bias is not None, dtype=a.dtype)
        weights = {"weight": b.double() @ a.double()} | ({} if bias is None else {"bias": bias})
        linear.load_state_dict(weights)
        return linear


def _pair(node: fx.Node) -> _Pair | None:
    if not is_call(node, aten.linear.default):
        return None
    second = match_linear(node)
    if not isinstance(second, Site) or not is_call(second.inputs[0], aten.linear.default):
        return None
    first = match_linear(second.inputs[0])
    return _Pair(first, second) if isinstance(first, Site) else None


def _stored(program: Program, site: Site) -> Tensor:
    """A weight as [out, in]."""
    weight = program.weight(site.bindings["weight"]).detach()
    return weight.T if site.bindings["weight_transposed"] else weight


def _store(program: Program, pair: _Pair, merged: nn.Linear) -> None:
    """Put the product in the place of both."""
    output, (x,) = pair.second.output, pair.first.inputs
    path = pair.second.bindings["weight"].rpartition(".")[0]
    trainable = program.weight(pair.second.bindings["weight"]).requires_grad
    operands = []
    for role, stored in merged.state_dict().items():
        name = program.free_name(f"{path}.merged_{role}" if path else f"merged_{role}")
        program.set_weight(name, stored, trainable=trainable)
        with program.graph.inserting_before(output):
            operands.append(program.graph.get_attr(name))
        operands[-1].meta["val"] = value(output).new_empty(stored.shape)
    replace(output, insert_call(output, aten.linear.default, x, *operands))


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [PreMerge]
