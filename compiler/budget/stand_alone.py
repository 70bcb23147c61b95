"""Stand-ins as a backend lowers them, alone and on trial: the bytes of the payload and the seconds of a run.

A stand-in is lowered alone at the sizes at which it is called, beside the original. What a module weighs depends on its
shapes and not on its numbers, so that one figure serves every site of a shape, in later runs too. What it takes to call
anything at all is timed too and left out: a layer inside a model is not called.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compiler.content_digest import text_digest
from compiler.evidence.trial_lowering import lowered_on_trial, lowering_digest, machine_digest, module_form
from compiler.evidence.turns import alternating_seconds
from compiler.kept_work import kept_folder, write_whole

if TYPE_CHECKING:
    from compiler.backend import Backend
    from compiler.program import Program
    from compiler.target import Target

KIND, FILE_NAME = "stand-ins", "figures.json"
LEAST_SECONDS = 1e-7
"""What is no slower than a call of nothing counts as this."""

Shape = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class Figures:
    """What a stand-in uses: bytes of its payload, FLOPs of a call, and seconds beside those of the original.

    Seconds are those beyond a call of nothing; None where nothing was timed.
    """

    bytes: int
    flops: int
    seconds: float | None = None
    original_seconds: float | None = None

    def beside(self, whole: float) -> Figures:
        """The same, with the seconds that it takes where the original takes `whole`."""
        if self.seconds is None or not self.original_seconds:
            return self
        return Figures(self.bytes, self.flops, whole * self.seconds / self.original_seconds, whole)


class StandAlone:
    """Figures of modules, each shape measured once."""

    def __init__(self, backend: Backend, target: Target, *, timed: bool) -> None:
        self._backend, self._target, self._timed = backend, target, timed
        digest = text_digest(lowering_digest(backend, target), *([machine_digest()] if timed else []))
        self._path = kept_folder(KIND, digest) / FILE_NAME
        self._known: dict[str, Figures] = _read(self._path)

    def figures(
        self, name: str, module: nn.Module, original: nn.Module, called: Sequence[Shape], typical: Sequence[Shape]
    ) -> Figures:
        """Of `module`, `name` being what made it: bytes and seconds where it is called with inputs of `typical` shapes,
        FLOPs with those that it is `called` with on the example inputs.
        """
        form = text_digest(name, str(called), str(typical), module_form(module))
        known = self._known.get(form)
        if known is None:
            self._known[form] = known = self._measured(module, original, called, typical)
            write_whole(self._path, self._write)
        return known

    def _measured(
        self, module: nn.Module, original: nn.Module, called: Sequence[Shape], typical: Sequence[Shape]
    ) -> Figures:
        from compiler.evidence.cost import module_flops

        inputs = drawn(typical)
        flops = module_flops(module, drawn(called))
        with lowered_on_trial(_program(module, inputs), self._backend, self._target) as ours:
            if not self._timed:
                return Figures(ours.bytes, flops)
            with (
                lowered_on_trial(_program(original, inputs), self._backend, self._target) as theirs,
                lowered_on_trial(_program(_Nothing(), inputs), self._backend, self._target) as nothing,
            ):
                calls = {"ours": ours, "theirs": theirs, "nothing": nothing}
                seconds = alternating_seconds({name: one.call(inputs) for name, one in calls.items()})
            medians = {name: statistics.median(one) for name, one in seconds.items()}
            return Figures(
                ours.bytes, flops, *(max(LEAST_SECONDS, medians[k] - medians["nothing"]) for k in ("ours", "theirs"))
            )

    def _write(self, path: Path) -> None:
        path.write_text(json.dumps({form: asdict(one) for form, one in self._known.items()}), encoding="utf-8")


class Several(nn.Module):
    """Modules side by side, each with inputs of its own: stand-ins that share what they store."""

    def __init__(self, modules: Sequence[nn.Module], input_counts: Sequence[int]) -> None:
        super().__init__()
        self.parts, self._counts = nn.ModuleList(modules), tuple(input_counts)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of all, in order."""
        given, found = list(inputs), []
        for part, count in zip(self.parts, self._counts, strict=True):
            made = part(*given[:count])
            found.append(made[0] if isinstance(made, tuple) else made)
            given = given[count:]
        return tuple(found)


class _Nothing(nn.Module):
    """Takes any inputs and gives one number of each, so that what is left to time is a call."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """[1] each."""
        return tuple(one.flatten()[:1] for one in inputs)


def drawn(shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """Inputs of these shapes: standard normal numbers; zeros for what is no float."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(size, generator=generator).to(dtype) if dtype.is_floating_point else torch.zeros(size, dtype=dtype)
        for size, dtype in shapes
    )


def _program(module: nn.Module, inputs: Sequence[Tensor]) -> Program:
    from compiler.frontends.torch_export import capture

    named = {f"x{index}": tensor for index, tensor in enumerate(inputs)}
    return capture(module, named, source="a stand-in", dynamic={})


def _read(path: Path) -> dict[str, Figures]:
    """Figures by form; none where the file is missing or not what this code writes."""
    try:
        return {form: Figures(**one) for form, one in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
