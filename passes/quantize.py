"""linear, embedding and convolution  ->  integer weights, with integer activations where that is faster

Before:  linear(x, W, b); embedding(E, indices); conv2d(x, K, b)
After:   dynamic_quantized_linear(x, W int8, scales, b) or quantized_linear(x, W in blocks, scales, zeros, b);
         with activations=static: matmul(fake_quantize_linear(x), dequantize_linear(W int8)) + b; convolutions alike;
         quantized_embedding(indices, E in few bits, scales); conv2d(x, dequantize_linear(K int8, scales), b)
         a table that is a linear's weight too: both read the same codes, stored once
Shapes:  x [..., in], W [out, in], E [vocabulary, width]; outputs keep shape and dtype.
Lossy:   int8 weights have one scale an output, weights in blocks one a block of inputs; rounding makes up for its own
         errors, and for those of the sites before it, on calibration data. The budget takes a site from a scale that
         calibration found to one for its inputs as they come, to one a row, to 8-bit weights only, and then back to
         float; from 2 bits to 4 to 8; a table from 6 bits to 8. Convolutions keep float activations unless these are
         static: they get smaller, not faster.
Refuses: what is quantized already; weights that other nodes share, or that are not finite;
         sites of under 1,024 weights; sites that `layers`, `sites` or `skip` leave out; tables when `embeddings` is
         none or rows fill no bytes.
Source:  Frantar et al. 2022, arXiv:2210.17323 (rounding); ONNX DynamicQuantizeLinear; com.microsoft MatMulNBits and
         GatherBlockQuantized.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal

from torch import Tensor, fx, nn

from compiler.hookspecs import hookimpl
from compiler.program import Program
from compiler.quantization.activation_ranges import ActivationRange, Calibration, activation_range
from compiler.quantization.calibration_walk import CalibrationWalk, calibration_walk
from compiler.quantization.modules import BlockQuantizedLinear, SharedTableRows
from compiler.quantization.packing import packed_width
from compiler.quantization.planned_bits import PlannedBits, planned_bits
from compiler.quantization.scales import Clip
from compiler.quantization.shared_tables import SharedTables
from compiler.quantization.stand_ins import (
    BlockForm,
    LinearWeights,
    Rounding,
    ScaleBits,
    block_at_least,
    block_linear,
    block_that_divides,
    dynamic_int8_linear,
    int8_convolution,
    linear_weights,
    quantized_table,
    row_scaled_int8_linear,
    said_of_rounding,
    unfit,
    wants_row_scales,
)
from compiler.quantization.static_layers import sampled, static_int8_convolution, static_int8_linear
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
from compiler.sites import Refusal, Site

AUTO = "auto-"
GROUP = {8: 128, 4: 32, 2: 32}
"""Inputs that share a scale, by bits."""
CANDIDATE_BLOCKS: tuple[tuple[Literal[8, 4, 2], Literal[32, 64, 128]], ...] = (
    (8, 32), (8, 128), (4, 32), (4, 64), (4, 128), (2, 32), (2, 64), (2, 128),
)  # fmt: skip
"""Bits and inputs that share a scale, as a budget may choose them."""
SHARED_TABLE_BITS = {8: 8, 6: 8, 4: 4}
"""Bits of a table that a product reads too, by the bits of other tables: no product takes six."""


@dataclass(frozen=True)
class Quantize(ChoosesLayers, Graft):
    """Stores the weights of linear, embedding and convolution sites as integers."""

    name: ClassVar[str] = "quantize"
    healing_weight = 0.25
    site_kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding", "convolution", "quantized")

    bits: Annotated[
        Literal[8, 4, 2] | str,
        "bits of a linear weight; auto-3: by site, 3 on average, what costs least; 2, 4 and 8, from auto-4 on 4 and 8",
    ] = 8
    activations: Annotated[
        Literal["auto", "dynamic", "rows", "static", "none"],
        "dynamic: inputs as int8 with one scale; rows: with a scale a row; static: with one that calibration "
        "finds, of convolutions too; none: not; auto: dynamic or rows, by the data",
    ] = "auto"
    calibration: Annotated[Calibration, "how static finds the range of what flows in"] = "entropy"
    group: Annotated[
        Literal[16, 32, 64, 128, 256] | None,
        "inputs that share a scale, for weights only; none: 128, or 32 below 8 bits",
    ] = None
    symmetric: Annotated[bool | None, "no zero points, for weights only; none: at 8 bits"] = None
    clip: Annotated[Clip, "mse: clip extreme weights where that lessens the error"] = "mse"
    rounding: Annotated[Rounding, "compensated: later weights make up for the rounding of earlier ones"] = "compensated"
    keep_grid: Annotated[bool, "weights on a grid of 4 or 8 bits already, as out of a GGUF file, keep it exactly"] = (
        True
    )
    embeddings: Annotated[Literal[8, 6, 4] | None, "bits of an embedding table"] = 6
    scale_bits: Annotated[ScaleBits, "bits of a block's scale: 16, or 8 beside a float16 a row, for weights only"] = 16
    sites: Annotated[tuple[str, ...], "only sites whose names match, as in layers.0.*+layers.1.*"] = ()
    skip: Annotated[tuple[str, ...], "sites to leave as they are"] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        average = self._average
        if isinstance(self.bits, str) and (average is None or not 2 <= average <= 8):
            raise ValueError(f"bits={self.bits} is none of 8, 4, 2 and auto-N with N from 2 to 8")
        if self.bits != 8 and self.activations in ("dynamic", "rows", "static"):
            raise ValueError(
                f"{self.bits}-bit weights have no kernel for quantized activations: leave activations=none"
            )

    @property
    def _average(self) -> float | None:
        """N of bits=auto-N."""
        if not isinstance(self.bits, str) or not self.bits.startswith(AUTO):
            return None
        try:
            return float(self.bits.removeprefix(AUTO))
        except ValueError:
            return None

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """The first rung of the site's ladder, or why there is none."""
        return next(self.propose_all((site,), program, context))

    def propose_all(
        self, sites: Sequence[Site], program: Program, context: PassContext
    ) -> Iterator[Replacement | Refusal]:
        """Each site in turn, with the inputs that the stand-ins before it leave it."""
        needs_data = self.rounding == "compensated" or self.activations == "static"
        walk = calibration_walk(program, context) if needs_data else None
        compensated = self.rounding == "compensated" and self.embeddings == 4
        wanted = [site for site in sites if self._left_out(site) is None]
        tables = SharedTables(wanted, program, context.data if compensated else None)
        plan = self._plan(sites, program, context, tables)
        for site in sites:
            proposal = self._proposal(site, program, walk, tables, plan)
            if isinstance(proposal, Replacement):
                if context.max_drop is None:
                    proposal.gentler = None  # which would keep float weights and statistics in memory
                if walk is not None:
                    walk.replace(site, proposal.module)
            yield proposal

    def _proposal(
        self,
        site: Site,
        program: Program,
        walk: CalibrationWalk | None,
        tables: SharedTables,
        plan: dict[fx.Node, PlannedBits],
    ) -> Replacement | Refusal:
        reason = self._left_out(site) or unfit(site, program, tables.others(site))
        if reason is not None:
            return Refusal(reason, site.output.name, site.name, site.kind)
        if tables.others(site):
            return self._shared(site, program, tables)
        if site.kind == "convolution":
            return self._convolution(site, program, walk)
        if site.kind == "embedding":
            return self._table(site, program.weight(site.bindings["weight"]))
        layer = linear_weights(site, program, None if walk is None else walk.statistics(site))
        if (planned := plan.get(site.output)) is not None:
            proposal = self._blocks(layer, planned.bits)
            proposal.note += f", {planned}"
            return proposal
        if self.activations == "static" and layer.statistics is not None:
            assert walk is not None
            return self._static(layer, activation_range(sampled(walk.rows(site)), self.calibration))
        return self._linear(layer)

    def _plan(
        self, sites: Sequence[Site], program: Program, context: PassContext, tables: SharedTables
    ) -> dict[fx.Node, PlannedBits]:
        """Bits for each linear site, where they are to be chosen."""
        if self._average is None:
            return {}
        linear = [
            site
            for site in sites
            if site.kind == "linear"
            and not tables.others(site)
            and self._left_out(site) is None
            and unfit(site, program, ()) is None
        ]
        choices = (2, 4, 8) if self._average < 4 else (4, 8)
        forms = {
            bits: BlockForm(bits, self._group(bits), self.clip, self.symmetric, self.keep_grid, self.scale_bits)
            for bits in choices
        }
        return planned_bits(linear, program, context, forms, self._average)

    @classmethod
    def candidates(cls, kind: str) -> Iterable[Graft]:
        """Bits, blocks, kinds of activations, and a grid of 4 bits that weights lie on: it takes more than long blocks.
        For tables, those of the product that may share one too. Scales are bytes but for that grid as it is.
        """
        if kind == "linear":
            yield from (cls(), cls(activations="static"), cls(bits=4, activations="none"))
            yield cls(bits=4, activations="none", scale_bits=8)
            for bits, group in CANDIDATE_BLOCKS:
                yield cls(bits=bits, group=group, activations="none", keep_grid=False, scale_bits=8)
        elif kind == "embedding":
            yield from (cls(embeddings=8), cls(embeddings=6))
            yield from (cls(embeddings=4, group=group, scale_bits=8) for group in (32, 64, 128))
        elif kind == "convolution":
            yield from (cls(), cls(activations="static"))

    def _left_out(self, site: Site) -> str | None:
        if self.sites and not any(fnmatchcase(site.name, wanted) for wanted in self.sites):
            return f"sites={'+'.join(self.sites)} leaves it out"
        if any(fnmatchcase(site.name, unwanted) for unwanted in self.skip):
            return f"skip={'+'.join(self.skip)} leaves it out"
        if site.kind == "embedding" and self.embeddings is None:
            return "embeddings=none leaves it out"
        return None

    def _group(self, bits: int) -> int:
        return GROUP[bits] if self.group is None else self.group

    def _linear(self, layer: LinearWeights) -> Replacement:
        assert isinstance(self.bits, int)
        if self.bits < 8 or self.activations == "none":
            return self._blocks(layer, self.bits)
        if self.activations == "rows" or (self.activations == "auto" and wants_row_scales(layer)):
            return self._row_scaled(layer)
        module = dynamic_int8_linear(layer, self.clip, self.rounding)
        unknown = " for want of calibration data" if self.activations == "static" and layer.statistics is None else ""
        note = f"int8 weights, dynamic int8 activations{unknown}{said_of_rounding(self.rounding, layer)}"
        return Replacement(module, note, gentler=lambda: self._row_scaled(layer))

    def _static(self, layer: LinearWeights, inputs: ActivationRange) -> Replacement:
        module = static_int8_linear(layer, self.clip, self.rounding, inputs)
        note = f"int8 weights, int8 activations from {inputs.low:.3g} to {inputs.high:.3g} by {self.calibration}"
        return Replacement(module, note, gentler=lambda: self._linear(layer))

    def _row_scaled(self, layer: LinearWeights) -> Replacement:
        module = row_scaled_int8_linear(layer, self.clip, self.rounding)
        note = f"int8 weights, dynamic int8 activations with a scale a row{said_of_rounding(self.rounding, layer)}"
        return Replacement(module, note, gentler=lambda: self._blocks(layer, 8))

    def _blocks(self, layer: LinearWeights, bits: int) -> Replacement:
        block_size = min(self._group(bits), block_at_least(layer.weight.shape[1]))
        form = BlockForm(bits, block_size, self.clip, self.symmetric, self.keep_grid, self.scale_bits)
        module = block_linear(layer, form, self.rounding)
        scales = ", scales in a byte" if self.scale_bits == 8 else ""
        if module.exact:
            note = f"{bits}-bit weights in the blocks of {module.block_size} that they lie in already{scales}"
            finer = (lambda: replace(self, scale_bits=16)._blocks(layer, bits)) if self.scale_bits == 8 else None
            return Replacement(module, note, gentler=finer)
        note = f"{bits}-bit weights in blocks of {form.block_size}{scales}{said_of_rounding(self.rounding, layer)}"
        gentler = (lambda: self._blocks(layer, 2 * bits)) if bits < 8 else None
        return Replacement(
            module, note, heal=("gains",), alone=False, learn=module.learn_scales, settle=module.settle, gentler=gentler
        )

    def _convolution(self, site: Site, program: Program, walk: CalibrationWalk | None) -> Replacement:
        if self.activations == "static" and walk is not None and (read := walk.inputs(site)):
            static = static_int8_convolution(site, program, self.clip, self.calibration, [x for (x,) in read])
            note = f"int8 weights, int8 inputs and outputs by {self.calibration}"
            return Replacement(static, note, gentler=lambda: self._convolution(site, program, None))
        bias = site.bindings["bias"]
        stored = None if bias is None else program.weight(bias)
        module = int8_convolution(program.weight(site.bindings["weight"]), stored, site.bindings, self.clip)
        return Replacement(module, "8-bit weights, one scale a channel")

    def _table(self, site: Site, stored: Tensor) -> Replacement | Refusal:
        assert self.embeddings is not None
        try:
            packed_width(stored.shape[1], self.embeddings)
        except ValueError as error:
            return Refusal(f"a row does not pack: {error}", site.output.name, site.name, site.kind)
        module = quantized_table(stored.detach(), self.embeddings, self.clip, stored.dtype, self.group, self.scale_bits)
        gentler = (lambda: replace(self, embeddings=8)._table(site, stored)) if self.embeddings < 8 else None
        return Replacement(module, f"{self.embeddings}-bit table", gentler=gentler)

    def _shared(self, site: Site, program: Program, tables: SharedTables) -> Replacement | Refusal:
        """A stand-in whose codes are those of every other site that reads the same table."""
        assert self.embeddings is not None
        stored = program.weight(site.bindings["weight"])
        bits = SHARED_TABLE_BITS[self.embeddings]
        block_size = block_that_divides(stored.shape[1], self._group(bits))
        if block_size is None:
            reason = f"its weight is shared, and rows of {stored.shape[1]} fill no whole blocks"
            return Refusal(reason, site.output.name, site.name, site.kind)
        form = BlockForm(bits, block_size, self.clip, self.symmetric, scale_bits=self.scale_bits)
        packed, bias = tables.packed(site, form), site.bindings.get("bias")
        module: nn.Module
        if site.kind == "embedding":
            module = SharedTableRows(packed, stored.dtype)
        else:
            module = BlockQuantizedLinear(packed, None if bias is None else program.weight(bias))
        note = f"{bits}-bit table in blocks of {block_size}, shared with {', '.join(tables.others(site))}"
        gentler = (lambda: replace(self, embeddings=8)._shared(site, program, tables)) if bits < 8 else None
        return Replacement(module, note, gentler=gentler)


@hookimpl
def register_passes() -> list[type[Pass]]:
    return [Quantize]


@hookimpl
def register_pipelines() -> dict[str, str]:
    return {
        "int8": "canonicalize,fuse,smooth,quantize",
        "int4": "canonicalize,fuse,quantize:bits=4",
    }
