"""last-token: each token reads the value of the newest token there is, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from compiler.mixers import Mixer
from compiler.mixers.mixer import by_head, packed


class LastToken(Mixer):
    """Values as they are, repeated for every query head."""

    name: ClassVar[str] = "last-token"

    def write(self, hidden: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        return (packed(value),)

    def read(self, hidden: Tensor, query: Tensor, written: Sequence[Tensor], positions: Tensor) -> Tensor:
        repeats = self.sizes.head_count // self.sizes.kv_head_count
        return by_head(written[0], self.sizes.kv_head_count).repeat_interleave(repeats, 1)
