"""How fast a site runs, and what would stand in for it: both lowered alone by a backend and called in turns.

Weights stay in the processor's caches as far as they fit, which in a large model they do not: at one token what takes
fewer bytes gains more there than here. What was measured is kept (compiler/kept_work.py) by the shapes of everything
that is computed, the backend and this code: layers of one shape are measured once.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.fx.node import map_arg

from compiler.content_digest import text_digest
from compiler.errors import CompilerError
from compiler.evidence.site_program import SiteProgram, site_program, token_sizes
from compiler.evidence.trial_lowering import lowered_on_trial, lowering_digest, machine_digest, module_form
from compiler.evidence.turns import ROUNDS, alternating_seconds
from compiler.kept_work import kept_folder, write_whole
from compiler.program import attribute

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

    from compiler.backend import Backend
    from compiler.program import Program
    from compiler.sites import Site
    from compiler.target import Target

KIND, FILE_NAME = "site-speeds", "speed.json"
TOKEN_COUNTS = (1, 128, 1024)


@dataclass(frozen=True)
class SiteSpeed:
    """Seconds of one call on so many tokens: of the site as it is, and of its stand-in. `gain` is the median over
    rounds of the first over the second.
    """

    tokens: int
    original_seconds: float
    stand_in_seconds: float
    gain: float


class SpeedMeter:
    """Measures sites of Programs for a backend and a target."""

    def __init__(self, backend: Backend, target: Target) -> None:
        self._backend, self._target = backend, target
        self.name = f"{backend.name} on {target}"
        self._digest = text_digest(machine_digest(), lowering_digest(backend, target))

    def compare(
        self, program: Program, site: Site, stand_in: nn.Module, token_counts: Sequence[int] = TOKEN_COUNTS
    ) -> tuple[SiteSpeed, ...] | str:
        """`site` of `program` beside `stand_in`, or why one of them cannot be run alone."""
        speeds = []
        for tokens in token_counts:
            cut = site_program(program, site, token_sizes(program, tokens))
            digest = text_digest(self._digest, *_told(cut.graph), *map(str, cut.shapes), _form(stand_in))
            kept = kept_folder(KIND, digest) / FILE_NAME
            speed = _read(kept)
            if speed is None:
                try:
                    speed = self._measured(cut, stand_in, tokens)
                except CompilerError as error:
                    return error.problem
                text = json.dumps(asdict(speed))
                write_whole(kept, lambda path, text=text: path.write_text(text, encoding="ascii"))  # type: ignore[misc]
            speeds.append(speed)
        return tuple(speeds)

    def seconds(self, programs: Mapping[str, Program], rounds: int = ROUNDS) -> dict[str, list[float]]:
        """Seconds of a call on each Program's example inputs, by name, one figure a round. Keeps nothing.

        Raises CompilerError for one that the backend cannot lower.
        """
        with ExitStack() as trials:
            calls = {name: self._call(program, trials) for name, program in programs.items()}
            return alternating_seconds(calls, rounds)

    def _call(self, program: Program, trials: ExitStack) -> Callable[[], object]:
        refused = self._backend.refuses(program, self._target)
        if refused is not None:
            raise CompilerError(f"lowering {program.source} alone", refused, "Choose another --backend or --target.")
        trial = trials.enter_context(lowered_on_trial(program, self._backend, self._target))
        return trial.call(program.example_inputs)

    def _measured(self, cut: SiteProgram, stand_in: nn.Module, tokens: int) -> SiteSpeed:
        seconds = self.seconds({"original": cut.original(), "stand_in": cut.replaced(stand_in)})
        original, ours = seconds["original"], seconds["stand_in"]
        gains = [one / other for one, other in zip(original, ours, strict=True)]
        return SiteSpeed(tokens, statistics.median(original), statistics.median(ours), statistics.median(gains))


def _told(module: fx.GraphModule) -> list[str]:
    """A site's own nodes, with the shapes of its weights in the place of their names."""
    numbers = {node: f"%{index}" for index, node in enumerate(module.graph.nodes)}
    lines = []
    for node in module.graph.nodes:
        if node.op == "get_attr":
            stored = attribute(module, str(node.target))
            lines.append(_shape(stored) if hasattr(stored, "shape") else f"{stored.graph}")
        else:
            called = node.target if node.op == "call_function" else node.op
            lines.append(f"{called} {map_arg((node.args, node.kwargs), numbers.__getitem__)}")
    return lines


def _form(module: nn.Module) -> str:
    """Of what follows from classes and shapes, and of settings that do not show in these."""
    plain = (bool, int, float, str, tuple)
    settings = [
        f"{name}.{key}={value}"
        for name, part in module.named_modules()
        for key, value in sorted(vars(part).items())
        if isinstance(value, plain) and not key.startswith("_")
    ]
    return text_digest(module_form(module), *settings)


def _shape(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _read(path: Path) -> SiteSpeed | None:
    """What an earlier run measured; None where the file is missing or not what this code writes."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
        return SiteSpeed(**values)
    except (OSError, ValueError, TypeError):
        return None
