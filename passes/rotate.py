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
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, fx

from compiler.hookspecs import hookimpl
from compiler.patterns import aten, in_graph_order, insert_call, value
from compiler.program import Program
from compiler.quantization.rotation import randomized_hadamard, rotated_columns, rotated_rows
from compiler.residual_stream import KIND, Reader, ResidualStream, residual_stream
from compiler.rewriting import Pass, PassContext, PassResult, Rewrite
from compiler.sites import Refusal, Site
from compiler.sites.names import refusal

MARK = "_rotated"
"""Ends the name of every embedding table that is rotated, so that a second run leaves the stream as it is."""


@dataclass(frozen=True)
class Rotate(Rewrite):
    """Puts the residual stream into a basis in which no channel stands out."""

    name: ClassVar[str] = "rotate"

    untie: Annotated[bool, "store the output head apart from the embedding rather than multiply once more"] = False

    def rewrite(self, program: Program, context: PassContext) -> PassResult:
        """Rotate in place. `changed` names the sites whose weights changed."""
        stream = residual_stream(program)
        if stream is None or isinstance(stream, Refusal):
            return PassResult(refusals=() if stream is None else (stream,))
        if any(table.bindings["weight"].endswith(MARK) for table in stream.embeddings):
            return PassResult()
        weights = _Weights(program)
        problem = _problem(stream, weights)
        if problem is not None:
            return PassResult(refusals=(problem,))
        rotation = randomized_hadamard(stream.width, context.seed)
        notes = _Rotation(program, stream, weights, rotation, self.untie).apply()
        program.refresh()
        sites = [*stream.embeddings, *stream.writers, *(reader.linear for reader in stream.readers), *stream.norms]
        names = {site.output: site.name for site in sites}
        return PassResult(changed=tuple(names[node] for node in in_graph_order(names)), notes=tuple(notes))


class _Weights:
    """Which nodes read a weight, under whatever name."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._holders: dict[int, list[fx.Node]] = {}
        for node in program.graph.find_nodes(op="get_attr"):
            if isinstance(node.meta.get("val"), Tensor):
                self._holders.setdefault(id(program.weight(node)), []).append(node)

    def readers(self, name: str) -> set[fx.Node]:
        """Every node that reads the tensor called `name`."""
        return {user for holder in self._holders[id(self._program.weight(name))] for user in holder.users}

    def rename(self, name: str, new_name: str, tensor: Tensor) -> None:
        """Let all who read the tensor called `name` read `tensor`, which is called `new_name`."""
        holders = self._holders.pop(id(self._program.weight(name)))
        self._program.set_weight(new_name, tensor)
        for holder in holders:
            holder.target = new_name
        self._holders[id(self._program.weight(new_name))] = holders


def _problem(stream: ResidualStream, weights: _Weights) -> Refusal | None:
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
        others = weights.readers(table) - allowed
        if len(others) > 1 or not others <= heads:
            return refusal(KIND, f"the table {table} is read by {_names(others)} too", next(iter(others)))
    for site in [*stream.writers, *stream.norms, *(reader.linear for reader in stream.readers)]:
        for name in (site.bindings["weight"], site.bindings["bias"]):
            others = weights.readers(name) - {*site.nodes, *allowed} if name is not None else set()
            if others:
                return refusal(KIND, f"the weight {name} is shared with {_names(others)}", site.output)
    return None


def _names(nodes: set[fx.Node]) -> str:
    return ", ".join(sorted(node.name for node in nodes))


class _Rotation:
    """One rotation of one stream, weight by weight."""

    def __init__(
        self, program: Program, stream: ResidualStream, weights: _Weights, rotation: Tensor, untie: bool
    ) -> None:
        self._program = program
        self._stream = stream
        self._weights = weights
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
            self._weights.rename(table, f"{table}{MARK}", rotated)
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
        product = insert_call(head.output, aten.linear.default, normed, stored)
        head.output.replace_input_with(normed, insert_call(head.output, aten.add.Tensor, normed, product))
        self._notes.append(f"{head.name} stays tied to the embedding; a product {list(rest.shape)} comes before it")

    def _rotate_writer(self, site: Site) -> None:
        weight, rows_are_inputs = self._program.weight(site.bindings["weight"]).detach(), _transposed(site)
        turn = rotated_rows if rows_are_inputs else rotated_columns
        self._set(site.bindings["weight"], turn(weight, self._rotation))
        if site.bindings["bias"] is not None:
            bias = self._program.weight(site.bindings["bias"]).detach()
            self._set(site.bindings["bias"], rotated_rows(bias[None], self._rotation)[0])

    def _rotate_reader(self, reader: Reader) -> None:
        weight = self._program.weight(reader.linear.bindings["weight"]).detach()
        scale = None
        if reader.norm is not None:
            scale = self._scales[reader.norm.output] / self._left[reader.norm.output]
        rows = weight.T if _transposed(reader.linear) else weight
        turned = rotated_rows(rows, self._rotation, scale)
        self._set(reader.linear.bindings["weight"], turned.T.contiguous() if _transposed(reader.linear) else turned)

    def _set(self, name: str, tensor: Tensor) -> None:
        self._program.set_weight(name, tensor)


def _transposed(site: Site) -> bool:
    """Whether a linear site stores its weight as [in, out]."""
    return bool(site.bindings["weight_transposed"])


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [Rotate]
