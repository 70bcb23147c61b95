"""A feed-forward block whose layers are structured: the module, and the linear layers that its site is made of.

    plain   down(activation(up(x)))           gated   down(activation(gate(x)) * up(x))

where gate and up may be halves of one layer, which then stays one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from compiler.sites.activations import KNOWN

if TYPE_CHECKING:
    from compiler.sites import Site

ROLES = ("gate", "up", "down")


class StructuredFeedForward(nn.Module):
    """The layers by role and what happens between them. `rows` says which outputs of `up` are gate and up, where
    `gate` is None and the block is gated.
    """

    def __init__(
        self,
        gate: nn.Module | None,
        up: nn.Module,
        down: nn.Module,
        activation: str,
        rows: tuple[tuple[int, int], tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down
        self.activation, self.rows = KNOWN[activation], rows

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] to the same shape."""
        hidden = self.up(x)
        if self.rows is not None:
            gate, up = (hidden[..., start:stop] for start, stop in self.rows)
            hidden = self.activation(gate) * up
        elif self.gate is not None:
            hidden = self.activation(self.gate(x)) * hidden
        else:
            hidden = self.activation(hidden)
        y: Tensor = self.down(hidden)
        return y


def layer_sites(site: Site, linears: Sequence[Site]) -> dict[str, Site] | str:
    """The linear sites of a feed-forward site by role, in graph order, or why they are not all there.

    Where gate and up are halves of one layer, it stands under `up` alone.
    """
    if site.bindings["form"] == "experts":
        return "its layers are those of experts"
    if site.bindings["activation"] not in KNOWN:
        return "its activation is none that is known"
    inside = {one.bindings["weight"]: one for one in linears if one.output in site.nodes}
    found: dict[str, Site] = {}
    for role in ROLES:
        weight = site.bindings[role]
        if weight is None or (role == "gate" and weight == site.bindings["up"]):
            continue
        if weight not in inside:
            return f"its layer {role} is no linear site"
        found[role] = inside[weight]
    if site.bindings["form"] == "plain" and site.bindings["up_rows"] != (0, found["up"].bindings["out_features"]):
        return "it reads a part of what its first layer gives"
    place = {node: index for index, node in enumerate(site.nodes)}
    return dict(sorted(found.items(), key=lambda item: place[item[1].output]))


def assembled(site: Site, layers: Mapping[str, nn.Module]) -> StructuredFeedForward:
    """The block with these layers by role."""
    halves = site.bindings["form"] == "gated" and "gate" not in layers
    rows = (site.bindings["gate_rows"], site.bindings["up_rows"]) if halves else None
    return StructuredFeedForward(layers.get("gate"), layers["up"], layers["down"], site.bindings["activation"], rows)
