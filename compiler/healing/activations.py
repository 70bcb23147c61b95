"""What flows in the teacher, kept on disk: a file a batch, with the values of chosen nodes by name.

Values are float16, or bfloat16 where one is too large for that. A batch whose file stands is not run again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from compiler.kept_work import write_whole

LARGEST_FLOAT16 = 3e4
SUFFIX = ".safetensors"


class Activations:
    """Values of the nodes called `names` in a graph, for batches by number, below `folder`."""

    def __init__(self, folder: Path, module: fx.GraphModule, names: Collection[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._module = module
        self._names = frozenset(names)

    def capture(self, index: int, inputs: Sequence[Tensor]) -> int:
        """Run batch `index` and keep its values. The bytes that they take."""
        path = self._path(index)
        if not path.exists():
            from safetensors.torch import save_file

            values = recorded(self._module, inputs, self._names)
            write_whole(path, lambda partial: save_file({name: _stored(one) for name, one in values.items()}, partial))
        return path.stat().st_size

    def read(self, index: int, names: Sequence[str]) -> dict[str, Tensor]:
        """Values by node name, floats in float32."""
        from safetensors import safe_open

        with safe_open(self._path(index), framework="pt") as kept:
            found = {name: kept.get_tensor(name) for name in names}
        return {name: one.float() if one.is_floating_point() else one for name, one in found.items()}

    def clear(self) -> None:
        """Remove all files."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            path.unlink(missing_ok=True)

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:06}{SUFFIX}"


def recorded(module: fx.GraphModule, inputs: Sequence[Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
    """Run a graph without gradients and give the values of the nodes called `names`."""
    recorder = _Recorder(module, frozenset(names))
    with torch.no_grad():
        recorder.run(*inputs)
    return recorder.values


class _Recorder(fx.Interpreter):
    """Runs a graph up to the last node that is asked for."""

    def __init__(self, module: fx.GraphModule, names: frozenset[str]) -> None:
        super().__init__(module)
        self.names = names
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The value of `n`, remembered where it is wanted; nothing is computed once all are known."""
        if n.op != "placeholder" and len(self.values) == len(self.names):
            return None
        value = super().run_node(n)
        if n.name in self.names:
            self.values[n.name] = value
        return value


def _stored(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value.clone(memory_format=torch.contiguous_format)
    large = value.numel() > 0 and float(value.abs().max()) > LARGEST_FLOAT16
    return value.to(torch.bfloat16 if large else torch.float16).clone(memory_format=torch.contiguous_format)
