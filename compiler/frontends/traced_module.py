"""One trace of a module with given dynamic dims, and the questions put to it: what it fixed, what it gets wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from compiler.errors import CompilerError
from compiler.frontends.dynamic_dims import GROWTH, DynamicDims, dim_sizes, resized, sizes_to_prove
from compiler.frontends.input_texts import SEED
from compiler.frontends.module_outputs import named_tensors
from compiler.program import plain_graph_module

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Of the largest output value: the same operators in the same order leave only kernel choice to differ."""

NEIGHBOURS = (1, 2, 3)
STEPS = (2, 3, 4, 5, 6, 7, 8, 12, 14, 16, 24, 28, 32, 64, 128)

Readout = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Named outputs and named inputs of the module -> the named outputs of the Program."""


class PositionalCall(nn.Module):
    """Calls the user's module with tensors by position and flattens what it returns into a tuple of tensors."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], by_keyword: bool, readout: Readout | None) -> None:
        super().__init__()
        self.module = module
        self.names = names
        self.by_keyword = by_keyword
        self.readout = readout

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(*tensors).values())

    def named(self, *tensors: Tensor) -> dict[str, Tensor]:
        """The module's outputs by name, as the readout leaves them."""
        inputs = dict(zip(self.names, tensors, strict=True))
        returned = self.module(**inputs) if self.by_keyword else self.module(*tensors)
        outputs = named_tensors(returned)
        return dict(self.readout(outputs, inputs)) if self.readout and outputs else outputs


def trace(doing: str, call: PositionalCall, inputs: dict[str, Tensor], dims: DynamicDims) -> TracedModule:
    """Export. Under no_grad, so that inference-only regions are inlined rather than wrapped in submodules."""
    shapes = tuple(dict.fromkeys(dims.get(name, {}), Dim.AUTO) for name in inputs)
    try:
        with torch.no_grad(), quiet_tracing():
            exported = torch.export.export(
                call, tuple(inputs.values()), dynamic_shapes={"tensors": shapes} if shapes else None, strict=False
            )
    except CompilerError:
        raise
    except Exception as error:
        hint = "torch.export could not follow the code, often because Python branches on a tensor's value."
        raise CompilerError(doing, first_line(error), hint) from error
    return TracedModule(doing, call, inputs, dims, exported, plain_graph_module(exported))


@dataclass(frozen=True)
class TracedModule:
    """The trace beside the call it was taken from and the inputs it was taken with."""

    doing: str
    call: PositionalCall
    inputs: dict[str, Tensor]
    dims: DynamicDims
    exported: ExportedProgram
    graph_module: fx.GraphModule

    @property
    def sizes(self) -> dict[str, int]:
        """The example size of every dynamic dim."""
        return dim_sizes(self.inputs, self.dims)

    def fixed_by_tracing(self) -> dict[str, str]:
        """Dynamic dims that became a number, or an expression that no named dim can state, with the reason."""
        reason = "the model's code asks for that size"
        return {name: reason for name, size in self._traced_sizes() if not _is_plain_symbol(size)}

    def disproved(self) -> dict[str, str]:
        """Dynamic dims at whose other sizes the trace fails or differs. Raises when it does so at the example sizes."""
        problem = self._difference({})
        if problem:
            hint = "Does the model keep state between calls in eval mode?"
            raise CompilerError(self.doing, f"the captured graph differs from the model: {problem}", hint)
        sizes = sizes_to_prove(self.sizes, self.ranges(), self.multiples)
        if not self._difference(sizes):
            return {}
        alone = {name: self._difference({name: size}) for name, size in sizes.items()}
        lost = {name: f"at {sizes[name]}, {problem}" for name, problem in alone.items() if problem}
        return lost or dict.fromkeys(sizes, "the dynamic dims hold one by one but not together")

    @cached_property
    def multiples(self) -> dict[str, int]:
        """For dims whose neighbouring sizes the module itself refuses: the number that its sizes are multiples of.

        A model that halves an image and adds the halves to what it doubles again takes multiples of 2, 4, ... only.
        """
        found = {}
        for name, (_, maximum) in self.ranges().items():
            size = self.sizes[name]
            near = [size + step for step in NEIGHBOURS if maximum is None or size + step <= maximum]
            if name not in GROWTH and not all(self._runs({name: one}) for one in near):
                steps = [step for step in STEPS if size % step == 0 and self._runs({name: size + step})]
                found[name] = steps[0] if steps else 1
        return found

    def smallest_sizes(self) -> dict[str, int]:
        """1 for the dims that hold at size 1, which tracing leaves open; otherwise what the trace says.

        Where sizes are multiples, the least of them at which the trace holds.
        """
        smallest = {}
        for name, (minimum, _) in self.ranges().items():
            step = self.multiples.get(name, 1)
            lowest = -(-minimum // step) * step if step > 1 else minimum
            candidates = range(lowest, self.sizes[name], step) if step > 1 else [1] if minimum <= 2 else []
            holding = (size for size in candidates if not self._difference({name: size}))
            smallest[name] = next(holding, self.sizes[name] if step > 1 else minimum)
        return smallest

    def _runs(self, sizes: dict[str, int]) -> bool:
        """Whether the module itself takes these sizes."""
        try:
            with torch.no_grad():
                self.call(*resized(self.inputs, self.dims, sizes).values())
        except Exception:  # the module is the user's: anything may be raised
            return False
        return True

    def ranges(self) -> dict[str, tuple[int, int | None]]:
        """The least and greatest size (None: no limit) that the trace allows for every dim, over all inputs."""
        ranges: dict[str, tuple[int, int | None]] = {}
        for name, size in self._traced_sizes():
            if not isinstance(size, torch.SymInt):
                continue
            minimum, maximum = ranges.setdefault(name, (2, None))
            allowed = self.exported.range_constraints.get(size.node.expr)
            if allowed is None:
                continue
            upper = int(allowed.upper) if allowed.upper.is_Integer else None
            limits = [limit for limit in (maximum, upper) if limit is not None]
            ranges[name] = (max(minimum, int(allowed.lower)), min(limits) if limits else None)
        return ranges

    def _traced_sizes(self) -> Iterator[tuple[str, int | torch.SymInt]]:
        placeholders = [node for node in self.exported.graph.nodes if node.op == "placeholder"]
        for input_name, node in zip(self.inputs, placeholders[len(placeholders) - len(self.inputs) :], strict=True):
            for index, name in self.dims.get(input_name, {}).items():
                yield name, node.meta["val"].shape[index]

    def _difference(self, sizes: dict[str, int]) -> str | None:
        """What is wrong with the trace at these sizes, or None."""
        tensors = resized(self.inputs, self.dims, sizes).values()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                torch.manual_seed(SEED)
                expected = self.call(*tensors)
            except Exception as error:
                return f"the model itself fails ({first_line(error)})"
            try:
                torch.manual_seed(SEED)
                found = self.graph_module(*tensors)
            except Exception as error:
                return f"the captured graph fails ({first_line(error)})"
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            if one.shape != other.shape:
                return f"output {index} has shape {list(other.shape)} instead of {list(one.shape)}"
            if not _close(one, other):
                return f"output {index} has other values"
        return None


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Keep torch from printing the tracebacks of operators that fail while they are traced: the error says it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or the error's class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _is_plain_symbol(size: int | torch.SymInt) -> bool:
    return isinstance(size, torch.SymInt) and bool(size.node.expr.is_Symbol)


def _close(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    one, other = one.detach(), other.detach()  # a graph may return a weight as it is
    tolerance = TOLERANCE.get(one.dtype, 0.1)
    one, other = one.double(), other.double()
    finite = one[torch.isfinite(one)]
    scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    return torch.allclose(one, other, rtol=0.0, atol=tolerance * scale, equal_nan=True)
