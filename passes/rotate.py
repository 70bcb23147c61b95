"""The residual stream in another basis, x @ R with R a randomized Hadamard matrix: outliers spread over all channels

Before:  x = embedding(E) + linear(z, O);  n = rms_norm(x, g);  linear(n, W);  the output head linear(n, E)
After:   x' = embedding(E R) + linear(z, R^T O);  n' = rms_norm(x', 1);  linear(n', W diag(g) R)
         a head tied to E keeps that table:  linear(n' + linear(n', R^T diag(g) R - 1), E R), one product of
         [hidden, hidden] more; with untie it has one of its own, E diag(g) R, and no product
         with heads, values [..., head_dim] as well: v' = v H, undone in the linear behind attention
Shapes:  x [..., hidden], R [hidden, hidden], E [vocabulary, hidden], W [out, hidden], O [hidden, in].
Exact:   up to rounding: 1e-5 in float32, 1e-2 in bfloat16. Weights on a grid, as those of a quantized file, leave it.
Refuses: a stream that something else than norms, linears and sums reads or writes: norms behind a block (gemma2), norms
         that take the mean away, experts; a stream that is an output; weights that several layers share.
Source:  Ashkboos et al. 2024 (QuaRot), arXiv:2404.00456, sections 3 and 4; Ashkboos et al. 2024 (SliceGPT),
         arXiv:2401.15024, section 3, for the invariance; Liu et al. 2024 (SpinQuant), arXiv:2405.16406, for the heads.

Measure what it gives: on SmolLM2-135M, whose weights stand on a grid of 4 bits with zero points, round to nearest to
4 bits loses by it, with zero points and without.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, fx

from compiler.hookspecs import hookimpl
from compiler.patterns import aten, in_graph_order, insert_call, value
from compiler.program import Program
from compiler.quantization.rotation import randomized_hadamard, rotated_columns, rotated_heads, rotated_rows
from compiler.residual_stream import KIND, Reader, ResidualStream, residual_stream
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal, Site, find_sites
from compiler.sites.names import refusal
from compiler.sites.value_heads import match_value_heads
from compiler.weight_readers import rename_weight, weight_readers

MARK = "_rotated"
"""Ends the names of the tables and values that are rotated, so that a second run leaves them as they are."""


@dataclass(frozen=True)
class Rotate(Rewrite):
    """Puts the residual stream into a basis in which no channel stands out."""

    name: ClassVar[str] = "rotate"

    untie: Annotated[bool, "store the output head apart from the embedding rather than multiply once more"] = False

    heads: Annotated[bool, "rotate the heads of the values as well"] = True

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rotate in place. `changed` names the sites whose weights changed."""
        done = _Done()
        self._rotate_stream(program, context.seed, done)
        for attention in find_sites(program, ("attention",)) if self.heads else ():
            if isinstance(attention, Site):
                _rotate_heads(program, attention, context.seed, done)
        if done.changed:
            program.refresh()
        names = tuple(dict.fromkeys(done.changed[node] for node in in_graph_order(done.changed)))
        return PassResult(names, tuple(done.refusals), notes=tuple(done.notes))

    def _rotate_stream(self, program: Program, seed: int, done: _Done) -> None:
        stream = residual_stream(program)
        if isinstance(stream, ResidualStream):
            if any(table.bindings["weight"].endswith(MARK) for table in stream.embeddings):
                return
            problem = _problem(program, stream)
            if problem is None:
                rotation = randomized_hadamard(stream.width, seed)
                done.notes += _Rotation(program, stream, rotation, self.untie).apply()
                linears = (reader.linear for reader in stream.readers)
                done.add(*stream.embeddings, *stream.writers, *linears, *stream.norms)
        else:
            problem = stream
        if problem is not None:
            done.refusals.append(problem)


@dataclass
class _Done:
    """What became of the places that were looked at."""

    changed: dict[fx.Node, str] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *sites: Site) -> None:
        """Note sites whose weights changed."""
        self.changed |= {site.output: site.name for site in sites}


def _rotate_heads(program: Program, attention: Site, seed: int, done: _Done) -> None:
    """v' = v H in every head, undone by the layer that reads what attention makes of the values."""
    found = match_value_heads(attention)
    if isinstance(found, Refusal):
        done.refusals.append(found)
        return
    producer, consumer = found.producer.bindings, found.consumer.bindings
    if producer["weight"].endswith(MARK):
        return
    for site in (found.producer, found.consumer):
        for name in filter(None, (site.bindings["weight"], site.bindings["bias"])):
            others = weight_readers(program, name) - set(site.nodes)
            if others:
                reason = f"the weight {name} is shared with {_names(others)}"
                done.refusals.append(Refusal(reason, site.output.name, attention.name, attention.kind))
                return
    rotation = randomized_hadamard(found.head_dim, seed)
    made = _rows(program, found.producer).clone()
    values = slice(found.start, found.start + found.kv_head_count * found.head_dim)
    made[values] = rotated_heads(made[values], rotation)
    rename_weight(
        program, producer["weight"], f"{producer['weight']}{MARK}", made.T if _transposed(found.producer) else made
    )
    if producer["bias"] is not None:
        bias = program.weight(producer["bias"]).detach().clone()
        bias[values] = rotated_heads(bias[values, None], rotation)[:, 0]
        program.set_weight(producer["bias"], bias)
    read = rotated_heads(_rows(program, found.consumer).T, rotation)
    program.set_weight(consumer["weight"], (read if _transposed(found.consumer) else read.T).contiguous())
    done.add(found.producer, found.consumer)


def _problem(program: Program, stream: ResidualStream) -> Refusal | None:
    """Why the stream cannot be rotated although it can be followed."""
    for norm in stream.norms:
        if norm.bindings["norm"] != "rms_norm":
            return refusal(KIND, f"the layer norm {norm.name} takes the mean away, which is no rotation", norm.output)
    if not stream.embeddings:
        return refusal(KIND, "no embedding writes to it", stream.norms[0].output)
    tables = {table.bindings["weight"] for table in stream.embeddings}
    allowed = {node for table in stream.embeddings for node in table.nodes}
    heads = {reader.linear.output for reader in stream.readers}
    for table in sorted(tables):
        others = weight_readers(program, table) - allowed
        if len(others) > 1 or not others <= heads:
            return refusal(KIND, f"the table {table} is read by {_names(others)} too", next(iter(others)))
    for site in [*stream.writers, *stream.norms, *(reader.linear for reader in stream.readers)]:
        for name in (site.bindings["weight"], site.bindings["bias"]):
            others = weight_readers(program, name) - {*site.nodes, *allowed} if name is not None else set()
            if others:
                return refusal(KIND, f"the weight {name} is shared with {_names(others)}", site.output)
    return None


def _names(nodes: set[fx.Node]) -> str:
    return ", ".join(sorted(node.name for node in nodes))


class _Rotation:
    """One rotation of one stream, weight by weight."""

    def __init__(self, program: Program, stream: ResidualStream, rotation: Tensor, untie: bool) -> None:
        self._program = program
        self._stream = stream
        self._rotation = rotation
        self._untie = untie
        self._scales = {norm.output: self._scale(norm) for norm in stream.norms}
        self._left = dict.fromkeys(self._scales, 1.0)
        self._notes: list[str] = []

    def apply(self) -> list[str]:
        """Rotate every weight around the stream. What there is to say about the head is returned."""
        tied = self._tied_readers()
        for reader in tied:
            self._keep_tied(reader)
        for site in self._stream.writers:
            self._rotate_writer(site)
        for reader in self._stream.readers:
            if reader not in tied:
                self._rotate_reader(reader)
        for table in dict.fromkeys(table.bindings["weight"] for table in self._stream.embeddings):
            rotated = rotated_rows(self._program.weight(table).detach(), self._rotation)
            rename_weight(self._program, table, f"{table}{MARK}", rotated)
        for norm in self._stream.norms:
            left = self._left[norm.output] - norm.bindings["weight_offset"]
            self._set(norm.bindings["weight"], torch.full_like(self._program.weight(norm.bindings["weight"]), left))
        return self._notes

    def _scale(self, norm: Site) -> Tensor:
        """What the norm multiplies each channel with, in float64."""
        return self._program.weight(norm.bindings["weight"]).detach().double() + float(norm.bindings["weight_offset"])

    def _tied_readers(self) -> list[Reader]:
        """The readers of an embedding's table, where they are to go on reading it."""
        tables = {id(self._program.weight(table.bindings["weight"])) for table in self._stream.embeddings}
        tied = [
            reader
            for reader in self._stream.readers
            if id(self._program.weight(reader.linear.bindings["weight"])) in tables
        ]
        if not self._untie:
            return tied
        own = {reader.linear.output: replace(reader, linear=self._with_own_weight(reader.linear)) for reader in tied}
        self._stream.readers = [own.get(reader.linear.output, reader) for reader in self._stream.readers]
        return []

    def _with_own_weight(self, head: Site) -> Site:
        """The head that reads a copy of the table it shared, to be rotated with the other readers' weights."""
        shared = self._program.weight(head.bindings["weight"])
        name = self._program.free_name(f"{head.name}.weight")
        self._program.set_weight(name, shared.detach().clone())
        holder: Any = head.output.args[1]
        with self._program.graph.inserting_before(head.output):
            own = self._program.graph.get_attr(name)
        own.meta = dict(holder.meta)
        head.output.replace_input_with(holder, own)
        self._notes.append(f"{head.name} is stored apart from the embedding: {shared.numel():,} weights more")
        return replace(head, bindings={**head.bindings, "weight": name})

    def _keep_tied(self, reader: Reader) -> None:
        """Apply the scale in front of a head whose weight is the embedding's: as a matrix in the new basis."""
        if reader.norm is None:
            return
        scale = self._scales[reader.norm.output]
        root_mean_square = float(scale.square().mean().sqrt())
        self._left[reader.norm.output] = root_mean_square or 1.0
        if torch.equal(scale, torch.full_like(scale, float(scale[0]))):
            self._left[reader.norm.output] = float(scale[0])
            return
        rest = rotated_rows(self._rotation.T.contiguous(), self._rotation, scale / self._left[reader.norm.output])
        rest -= torch.eye(self._stream.width, dtype=rest.dtype)
        head = reader.linear
        name = self._program.free_name(f"{reader.norm.bindings['weight']}{MARK}")
        normed = head.inputs[0]
        self._program.set_weight(name, rest.to(value(normed).dtype))
        with self._program.graph.inserting_before(head.output):
            stored = self._program.graph.get_attr(name)
        stored.meta["val"] = value(normed).new_empty(rest.shape)
        origin = reader.norm.output
        product = insert_call(head.output, aten.linear.default, normed, stored, like=origin)
        scaled = insert_call(head.output, aten.add.Tensor, normed, product, like=origin)
        head.output.replace_input_with(normed, scaled)
        self._notes.append(f"{head.name} stays tied to the embedding; a product {list(rest.shape)} comes before it")

    def _rotate_writer(self, site: Site) -> None:
        weight, rows_are_inputs = self._program.weight(site.bindings["weight"]).detach(), _transposed(site)
        turn = rotated_rows if rows_are_inputs else rotated_columns
        self._set(site.bindings["weight"], turn(weight, self._rotation))
        if site.bindings["bias"] is not None:
            bias = self._program.weight(site.bindings["bias"]).detach()
            self._set(site.bindings["bias"], rotated_rows(bias[None], self._rotation)[0])

    def _rotate_reader(self, reader: Reader) -> None:
        scale = None
        if reader.norm is not None:
            scale = self._scales[reader.norm.output] / self._left[reader.norm.output]
        turned = rotated_rows(_rows(self._program, reader.linear), self._rotation, scale)
        self._set(reader.linear.bindings["weight"], turned.T.contiguous() if _transposed(reader.linear) else turned)

    def _set(self, name: str, tensor: Tensor) -> None:
        self._program.set_weight(name, tensor)


def _rows(program: Program, site: Site) -> Tensor:
    """The weight of a linear site as [out, in]."""
    weight = program.weight(site.bindings["weight"]).detach()
    return weight.T if _transposed(site) else weight


def _transposed(site: Site) -> bool:
    """Whether a linear site stores its weight as [in, out]."""
    return bool(site.bindings["weight_transposed"])


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [Rotate]
