"""What a convolution's kernel sees at each place, as rows: with them it is a matrix product like any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from compiler.sites import Site

MOST_PATCHES = 2**14
"""A sample: what more places say of a moment is little, and every one is a row of channels * kernel."""


def patches_of(site: Site) -> Callable[[Tensor], Tensor] | None:
    """From the input of a convolution with one group, in 1 or 2 dims, to its patches [1, places, channels * kernel].

    They stand in the order of weight.flatten(1). None for any other site.
    """
    sizes = site.bindings
    if site.kind != "convolution" or sizes["groups"] != 1 or sizes["dims"] > 2 or isinstance(sizes["padding"], str):
        return None
    one_dim = sizes["dims"] == 1
    kernel, stride, padding, dilation = (sizes[name] for name in ("kernel", "stride", "padding", "dilation"))

    def patches(x: Tensor) -> Tensor:
        if one_dim:
            x = x.unsqueeze(2)
        wide = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        if one_dim:
            wide = {name: ((0 if name == "padding" else 1), *numbers) for name, numbers in wide.items()}
        rows = functional.unfold(x.float(), **wide).transpose(1, 2).flatten(0, 1)  # [places, channels * kernel]
        return rows[:: -(-len(rows) // MOST_PATCHES)][None]

    return patches
