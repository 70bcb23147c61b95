"""Follows the residual stream of a transformer: what writes to it, what reads it, through which norms.

Found by what the graph computes, not by names. From the input of the last norm the walk goes up to everything that is
added to the stream and down to everything that reads it, until nothing is new. Every value on the way is the stream in
the same basis; one place that this is not true of makes the whole walk a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx

from compiler.patterns import (
    CASTS,
    COPIES,
    RESHAPES,
    argument,
    aten,
    has_tensor,
    is_call,
    operands,
    permutation,
    scalar,
    static_size,
    value,
)
from compiler.program import Program
from compiler.sites import Refusal, Site, find_sites
from compiler.sites.names import refusal

KIND = "residual stream"
NORMS = ("rms_norm", "layer_norm")
SCALINGS = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar})


@dataclass(frozen=True)
class Reader:
    """A linear site that reads the stream, directly or what `norm` makes of it."""

    linear: Site
    norm: Site | None


@dataclass
class ResidualStream:
    """The sites around one stream of `width` numbers a token."""

    width: int
    embeddings: list[Site] = field(default_factory=list)
    writers: list[Site] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    norms: list[Site] = field(default_factory=list)


def residual_stream(program: Program) -> ResidualStream | Refusal | None:
    """The stream that the last norm reads; why it cannot be followed; None where nothing is normed by rows."""
    sites = [site for site in find_sites(program, ("embedding", "linear", "norm")) if isinstance(site, Site)]
    norms = [site for site in sites if site.kind == "norm" and site.bindings["norm"] in NORMS]
    if not norms:
        return None
    start = norms[-1].inputs[0]
    width = static_size(start, -1)
    if width is None:
        return refusal(KIND, "its width is not fixed", start)
    walk = _Walk(ResidualStream(width), {site.output: site for site in sites}, norms)
    try:
        walk.follow(start)
    except _LostError as lost:
        return refusal(KIND, lost.reason, lost.node)
    return walk.stream


class _LostError(Exception):
    """Where the stream cannot be followed, and why."""

    def __init__(self, reason: str, node: fx.Node) -> None:
        super().__init__(reason)
        self.reason = reason
        self.node = node


class _Walk:
    """Visits every value that carries the stream once."""

    def __init__(self, stream: ResidualStream, sites: dict[fx.Node, Site], norms: list[Site]) -> None:
        self.stream = stream
        self._sites = sites
        self._norm_of = {(norm.inputs[0], node): norm for norm in norms for node in norm.nodes}

    def follow(self, start: fx.Node) -> None:
        """Fill `stream`. Raises _LostError."""
        seen = {start}
        waiting = [start]
        while waiting:
            carrier = waiting.pop()
            for other in (*self._sources(carrier), *self._carried_on(carrier)):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)

    def _sources(self, carrier: fx.Node) -> list[fx.Node]:
        """What carries the stream into `carrier`; a site that writes it is noted."""
        site = self._sites.get(carrier)
        if site is not None and site.kind in ("embedding", "linear"):
            (self.stream.embeddings if site.kind == "embedding" else self.stream.writers).append(site)
            return []
        if is_call(carrier, aten.add.Tensor) and argument(carrier, "alpha") == 1:
            terms = [term for term in operands(carrier)[:2] if has_tensor(term) and self._is_wide(term)]
            if len(terms) == 2:
                return terms
        source = _scaled(carrier) or _same_rows(carrier)
        if source is None:
            raise _LostError(f"{_what(carrier, site)} writes to it", carrier)
        return [source]

    def _carried_on(self, carrier: fx.Node) -> Iterator[fx.Node]:
        """The users that carry the stream on; those that read it are noted."""
        for user in carrier.users:
            if user.op == "output":
                raise _LostError("it is an output of the model", carrier)
            norm = self._norm_of.get((carrier, user))
            if norm is not None:
                if norm not in self.stream.norms:
                    self.stream.norms.append(norm)
                    self._read(norm.output, norm)
            elif self._reads(user, carrier):
                self.stream.readers.append(Reader(self._sites[user], None))
            elif not has_tensor(user):
                continue
            elif is_call(user, aten.add.Tensor) or carrier in (_scaled(user), _same_rows(user)):
                yield user
            else:
                raise _LostError(f"{_what(user, self._sites.get(user))} reads it, which is no linear layer", user)

    def _read(self, normed: fx.Node, norm: Site) -> None:
        """Note the linear sites that read what a norm gives."""
        for user in normed.users:
            if self._reads(user, normed):
                self.stream.readers.append(Reader(self._sites[user], norm))
            elif has_tensor(user) and _same_rows(user) is normed:
                self._read(user, norm)
            elif user.op == "output" or has_tensor(user):
                what = "an output" if user.op == "output" else _what(user, self._sites.get(user))
                raise _LostError(f"{what} reads what a norm gives, which is no linear layer", user)

    def _reads(self, user: fx.Node, x: fx.Node) -> bool:
        site = self._sites.get(user)
        return site is not None and site.kind == "linear" and site.inputs[0] is x

    def _is_wide(self, node: fx.Node) -> bool:
        return value(node).dim() > 0 and static_size(node, -1) == self.stream.width


def _what(node: fx.Node, site: Site | None) -> str:
    if site is not None:
        return f"the {str(site.bindings.get('norm', site.kind)).replace('_', ' ')} {site.name}"
    return str(node.target)


def _scaled(node: fx.Node) -> fx.Node | None:
    """x, where `node` is x times one number, or times one number a row."""
    if not is_call(node, *SCALINGS):
        return None
    left, right = operands(node)[:2]
    if _is_one_a_row(right) and has_tensor(left):
        return left  # type: ignore[no-any-return]
    swaps = is_call(node, aten.mul.Tensor) and _is_one_a_row(left) and has_tensor(right)
    return right if swaps else None


def _is_one_a_row(item: object) -> bool:
    if isinstance(item, fx.Node) and has_tensor(item):
        return value(item).dim() == 0 or static_size(item, -1) == 1
    return scalar(item) is not None


def _same_rows(node: fx.Node) -> fx.Node | None:
    """x, where the last dims of `node` are last dims of x as they were: chosen, repeated, moved, or cast."""
    source = node.args[0] if node.op == "call_function" and node.args else None
    if not isinstance(source, fx.Node) or not has_tensor(source) or not has_tensor(node) or not value(node).dim():
        return None
    rank, last = value(source).dim(), value(source).dim() - 1
    if rank == 0 or static_size(source, -1) is None or static_size(source, -1) != static_size(node, -1):
        return None
    if is_call(node, *CASTS, *COPIES, *RESHAPES, aten.expand.default):
        return source
    order = permutation(node)
    if order is not None:
        return source if order[-1] == last else None
    if is_call(node, aten.index.Tensor):
        return source if len(operands(node)[1]) < rank else None
    if is_call(node, aten.index_select.default, aten.slice.Tensor, aten.select.int):
        return source if argument(node, "dim") % rank != last else None
    return None
