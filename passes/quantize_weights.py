"""linear, embedding and convolution  ->  weights in any format that a plugin brings: int3, ternary, mxfp4, fp8-e4m3

Before:  linear(x, W, b); embedding(E, indices); conv2d(x, K, b)
After:   quantized_linear(x, codes of the format put into 2, 4 or 8 bits, scales, zeros, b), where it can be had so;
         linear(x, W unpacked, b) where it cannot; rows of the packed E, unpacked; conv2d(x, K unpacked, b)
         with rotate, the same of x @ R and W @ R, R block-diagonal with a randomized Hadamard matrix
Shapes:  x [..., in], W [out, in], E [vocabulary, width], K [out, in, *kernel]; outputs keep shape and dtype. Stored are
         codes [rows, blocks, bytes] without gaps, scales [rows, blocks], zero points.
Lossy:   rounding makes up for its own errors, and for those of the sites before it, on calibration data; healing trains
         the scales, or one more an output where the format's are powers of two. The budget takes a site to the format
         that its own names as gentler, in the end back to float.
Refuses: sites whose format no kernel of the backend computes with, unless --allow-simulated: they get smaller, and run
         as float. What is quantized already; weights that other nodes share, or that are not finite; sites of under
         1,024 weights; widths that `rotate` does not fit.
Source:  Frantar et al. 2022, arXiv:2210.17323 (rounding); Ashkboos et al. 2024, arXiv:2404.00456, section 3 (rotation);
         each file of compiler/quantization/formats names that of its format.

`rotate` here costs a product of R's size for every site's input and helps formats without zero points where single
inputs stand out; the pass `rotate` puts the whole residual stream into another basis and costs nothing at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from torch import nn

from compiler.errors import CompilerError, nearest_hint
from compiler.hookspecs import hookimpl
from compiler.program import Program
from compiler.quantization.block_rounding import nearest_blocks
from compiler.quantization.calibration_walk import CalibrationWalk, calibration_walk
from compiler.quantization.formats import WeightFormat
from compiler.quantization.formatted_layers import (
    FormattedConvolution,
    FormattedLinear,
    FormattedTable,
    RotatedInput,
    rotated_layer,
)
from compiler.quantization.rotation import randomized_hadamard
from compiler.quantization.scales import Clip
from compiler.quantization.shared_tables import SharedTables
from compiler.quantization.stand_ins import (
    LinearWeights,
    Rounding,
    linear_weights,
    rounded_blocks,
    said_of_rounding,
    unfit,
)
from compiler.rewriting import Graft, Pass, PassContext, Replacement
from compiler.selection.layer_choice import ChoosesLayers
from compiler.sites import Refusal, Site

if TYPE_CHECKING:
    from compiler.registry import Registry

SAME, NONE = "same", "none"
CANDIDATES = (("int3", 32), ("int3", 64), ("int3", 128), ("ternary", 64), ("ternary-base3", 64), ("mxfp4", None))
"""Formats and blocks that a budget may choose besides those of `quantize`: each has a kernel in ONNX Runtime."""


@dataclass(frozen=True)
class QuantizeWeights(ChoosesLayers, Graft):
    """Stores the weights of linear, embedding and convolution sites in a format."""

    name: ClassVar[str] = "quantize-weights"
    healing_weight = 0.25
    requires: ClassVar[tuple[str, ...]] = ("canonicalize",)
    site_kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding", "convolution", "quantized")

    format: Annotated[str, "int8, int4, int3, int2, ternary, mxint8, mxfp4, fp8-e4m3, ... or a plugin's"] = "int4"
    block: Annotated[
        int | None, "numbers that share a scale; 0: all of a row; none: as many as is usual for the format"
    ] = None
    symmetric: Annotated[bool | None, "no zero points; none: where the format is better without"] = None
    clip: Annotated[Clip, "mse: clip extreme weights where that lessens the error"] = "mse"
    rounding: Annotated[Rounding, "compensated: later weights make up for the rounding of earlier ones"] = "compensated"
    rotate: Annotated[
        int | None, "inputs that a Hadamard matrix mixes before they are multiplied, a power of two; none: none are"
    ] = None
    embeddings: Annotated[str, "format of embedding tables; same: that of the layers; none: they stay as they are"] = (
        SAME
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rotate is not None and (self.rotate < 2 or self.rotate & (self.rotate - 1)):
            raise ValueError(f"rotate={self.rotate} is no power of two")

    def check(self, registry: Registry) -> None:
        """Raises CompilerError for a format that there is none of, and for settings that it has not."""
        self._kinds(registry.formats())

    def propose(self, site: Site, program: Program, context: PassContext) -> Replacement | Refusal:
        """The first rung of the site's ladder, or why there is none."""
        return next(self.propose_all((site,), program, context))

    def propose_all(
        self, sites: Sequence[Site], program: Program, context: PassContext
    ) -> Iterator[Replacement | Refusal]:
        """Each site in turn, with the inputs that the stand-ins before it leave it."""
        one = _Proposals(self, sites, program, context, *self._kinds(context.formats))
        for site in sites:
            proposal = one.proposal(site)
            if isinstance(proposal, str):
                yield Refusal(proposal, site.output.name, site.name, site.kind)
                continue
            if context.max_drop is None:
                proposal.gentler = None  # which would keep float weights and statistics in memory
            one.replace(site, proposal.module)
            yield proposal

    @classmethod
    def candidates(cls, kind: str) -> Iterable[Graft]:
        """Formats that are not among those of `quantize`."""
        if kind in ("linear", "embedding"):
            yield from (cls(format=name, block=block) for name, block in CANDIDATES)

    def _kinds(self, known: Mapping[str, type[WeightFormat]]) -> tuple[type[WeightFormat], type[WeightFormat] | None]:
        """The format of layers and that of tables."""
        kind = self._kind(self.format, known)
        if self.embeddings == NONE:
            return kind, None
        return kind, kind if self.embeddings == SAME else self._kind(self.embeddings, known)

    def _kind(self, name: str, known: Mapping[str, type[WeightFormat]]) -> type[WeightFormat]:
        doing = f"running {self.name}"
        if name not in known:
            hint = nearest_hint(name, known, f"Formats: {', '.join(known)}.")
            raise CompilerError(doing, f"there is no format {name!r}", hint)
        try:
            known[name].check(self.block, self.symmetric)
        except ValueError as error:
            raise CompilerError(doing, str(error), f"See: compile passes {self.name}") from None
        return known[name]


class _Proposals:
    """The stand-ins of one run of the pass over a Program."""

    def __init__(
        self,
        options: QuantizeWeights,
        sites: Sequence[Site],
        program: Program,
        context: PassContext,
        kind: type[WeightFormat],
        table_kind: type[WeightFormat] | None,
    ) -> None:
        self.options, self.program, self.context = options, program, context
        self.kind, self.table_kind = kind, table_kind
        compensated = options.rounding == "compensated"
        self._walk: CalibrationWalk | None = calibration_walk(program, context) if compensated else None
        wanted = [site for site in sites if site.kind != "embedding" or table_kind]
        self._tables = SharedTables(wanted, program, context.data if compensated else None)

    def proposal(self, site: Site) -> Replacement | str:
        """What stands in for a site, or why nothing does."""
        sharing = self._tables.others(site)
        if site.kind == "embedding" and self.table_kind is None:
            return "embeddings=none leaves it out"
        reason = unfit(site, self.program, sharing) or self._without_kernel(site)
        if reason is not None:
            return reason
        if site.kind == "embedding":
            return self._table(site)
        if site.kind == "convolution":
            return self._convolution(site)
        layer = linear_weights(site, self.program, None if self._walk is None else self._walk.statistics(site))
        if sharing:
            return self._shared_linear(site, layer)
        return self._linear(layer, self.kind)

    def replace(self, site: Site, module: nn.Module) -> None:
        """Let later sites be fitted to what `module` gives."""
        if self._walk is not None:
            self._walk.replace(site, module)

    def _without_kernel(self, site: Site) -> str | None:
        """Why the site may not be simulated. Rows of a table are gathered as they are packed, whatever the format."""
        kind = self.table_kind if self._tables.others(site) else self.kind
        if site.kind == "embedding" or kind is None:
            return None
        missing = self.context.lacks_kernel(None if site.kind == "convolution" else kind.operator)
        return None if missing is None else f"{kind.name}: {missing}"

    def _form(self, kind: type[WeightFormat], width: int) -> WeightFormat:
        """The format with its settings; those of the options are for the format that they name."""
        own = kind is self.kind or kind is self.table_kind
        block, symmetric = (self.options.block, self.options.symmetric) if own else (None, None)
        return kind.for_width(width, block, symmetric, self.options.clip)

    def _linear(self, layer: LinearWeights, kind: type[WeightFormat]) -> Replacement | str:
        width, module = layer.weight.shape[1], None
        note = said_of_rounding(self.options.rounding, layer)
        rotation = None
        if self.options.rotate is not None:
            if width % self.options.rotate:
                return f"rotate={self.options.rotate} does not divide its {width} inputs"
            rotation = randomized_hadamard(self.options.rotate, self.context.seed)
            note = f", inputs rotated by {self.options.rotate}{note}"
        form = self._form(kind, width)
        rounded = layer if rotation is None else rotated_layer(layer, rotation.float())
        module = FormattedLinear(form, rounded_blocks(rounded, form, self.options.rounding), layer.bias)
        return Replacement(
            module if rotation is None else RotatedInput(module, rotation),
            f"{_said(form)}{note}{_simulated(form.operator)}",
            heal=("*gains",),
            alone=False,
            learn=module.learn_scales,
            settle=module.settle,
            gentler=self._gentler(layer, kind),
        )

    def _gentler(self, layer: LinearWeights, kind: type[WeightFormat]) -> Callable[[], Replacement | Refusal] | None:
        """What makes the next rung, where the format names one that the backend can run."""
        named = None if kind.gentler is None else self.context.formats.get(kind.gentler)
        if named is None or self.context.lacks_kernel(named.operator) is not None:
            return None

        def rung() -> Replacement | Refusal:
            made = self._linear(layer, named)
            return Refusal(made) if isinstance(made, str) else made

        return rung

    def _shared_linear(self, site: Site, layer: LinearWeights) -> Replacement:
        """A product with the very codes of the tables that share its weight."""
        assert self.table_kind is not None
        form = self._form(self.table_kind, layer.weight.shape[1])
        module = FormattedLinear(form, self._tables.packed(site, form), layer.bias)
        return Replacement(module, f"{_said(form)}, {self._sharing(site)}{_simulated(form.operator)}")

    def _table(self, site: Site) -> Replacement:
        assert self.table_kind is not None
        stored = self.program.weight(site.bindings["weight"])
        form = self._form(self.table_kind, stored.shape[1])
        if self._tables.others(site):
            packed, note = self._tables.packed(site, form), f", {self._sharing(site)}"
        else:
            packed, note = form.table(nearest_blocks(stored, form), stored.shape[1]), ""
        return Replacement(FormattedTable(form, packed, stored.shape[1], stored.dtype), f"{_said(form)}{note}")

    def _convolution(self, site: Site) -> Replacement:
        stored = self.program.weight(site.bindings["weight"])
        bias = site.bindings["bias"]
        rows = stored.detach().flatten(1)
        form = self._form(self.kind, rows.shape[1])
        held = None if bias is None else self.program.weight(bias)
        module = FormattedConvolution(form, nearest_blocks(rows, form), stored.shape, held, site.bindings)
        return Replacement(module, f"{_said(form)}{_simulated(None)}")

    def _sharing(self, site: Site) -> str:
        return f"shared with {', '.join(self._tables.others(site))}"


def _said(form: WeightFormat) -> str:
    return f"{form.name} in blocks of {form.block_size}"


def _simulated(operator: str | None) -> str:
    return ", unpacked to float when it runs" if operator is None else ""


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The pass of this file."""
    return [QuantizeWeights]
