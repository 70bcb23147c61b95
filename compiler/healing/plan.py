"""What a compile hands to healing, and what healing hands back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.healing.options import HealingOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compiler.healing.record import HealingRecord
    from compiler.sites import Site

TRAINING_TOKENS = 2**20
"""How much text is read at most: what two cores train on in a quarter of an hour, of a model of 135 million weights."""


@dataclass(frozen=True)
class HealingPlan:
    """Options, and the folder that work is kept below (None: the user's cache)."""

    options: HealingOptions
    folder: Path | None = None
    clock: Callable[[], float] = field(default=time.monotonic, compare=False)

    def share(self, part: float) -> HealingPlan | None:
        """The plan with a part of the time; None for nothing."""
        if part <= 0:
            return None
        return replace(self, options=replace(self.options, minutes=self.options.minutes * part))


@dataclass(frozen=True)
class Patient:
    """A grafted site: the module that stands in for it, which of its parameters may learn (names or globs), whether
    they first do so on their own, and by what part of the learning rates.
    """

    site: Site
    module: nn.Module
    heal: tuple[str, ...]
    alone: bool = True
    rate: float = 1.0


@dataclass(frozen=True)
class Healed:
    """What became of them: parameters of the modules were changed in place; `weights` are, for each site in order,
    changed weights of the layers around it by name.
    """

    record: HealingRecord
    weights: tuple[Mapping[str, Tensor], ...]
