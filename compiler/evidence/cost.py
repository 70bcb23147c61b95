"""What a Program costs: stored bytes, arithmetic, and the memory of this process."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import compiler.ops.dynamic_quantized_linear
import compiler.ops.quantized_linear  # noqa: F401  (both define operators that are counted below)
from compiler.program import storage_bytes

if TYPE_CHECKING:
    from compiler.program import Program


def weight_bytes(program: Program) -> int:
    """Bytes of all weights the graph uses, tied ones once."""
    return storage_bytes(list(program.weights().values()))


def float32_bytes(program: Program) -> int:
    """Bytes of all weights the graph uses if every number with a fraction were a float32; codes as they are stored."""
    return sum(
        weight.numel() * (4 if weight.is_floating_point() else weight.element_size())
        for weight in program.weights().values()
    )


def flops(program: Program) -> int:
    """Arithmetic of one run on the example inputs: matrix products, convolutions, attention; a multiply-add is two.

    A quantized product counts as much as the float one that it stands for: FLOPs measure structure, bytes measure
    storage.
    """
    return module_flops(program.graph_module, program.example_inputs, list(program.weights().values()))


def module_flops(module: nn.Module, inputs: Sequence[Any], weights: Sequence[Tensor] | None = None) -> int:
    """Arithmetic of a call of `module`, counted as `flops` does. `weights` are its own, where they are known."""
    products = (torch.ops.regraft.dynamic_quantized_linear, torch.ops.regraft.quantized_linear)
    counter = FlopCounterMode(display=False, custom_mapping=dict.fromkeys(products, _product_flops))
    with torch.no_grad(), _without_gradients(list(module.parameters()) if weights is None else weights), counter:
        module(*inputs)
    return int(counter.get_total_flops())


@contextmanager
def _without_gradients(weights: Sequence[Tensor]) -> Iterator[None]:
    """Weights that need no gradients inside: the counter looks for those of what a region is called with."""
    trained = [weight for weight in weights if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


def _product_flops(x_shape: Sequence[int], *others: Any, out_shape: Sequence[int], **options: Any) -> int:
    """A product of x [..., in] with a weight, whatever it is stored as, that gives [..., out]."""
    return 2 * math.prod(out_shape) * x_shape[-1]


def peak_memory_bytes() -> int:
    """The largest resident size that this process has had."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
