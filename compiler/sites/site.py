"""A site is a place in a Program that a graft can stand in for; a refusal says why a likely place is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx


@dataclass(frozen=True)
class Site:
    """One match: what kind it is, its readable name from the module path, and the nodes that take part.

    `inputs` are the activations that a stand-in module receives, in order; `output` is the node whose value it gives.
    `bindings` hold what the kind promises: weight names, sizes, scale, causality and so on.
    """

    kind: str
    name: str
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    output: fx.Node
    bindings: Mapping[str, Any]


@dataclass(frozen=True)
class Refusal:
    """Why a place was not matched or not grafted, and the node at fault. `name` and `kind` say which place it was."""

    reason: str
    node: str | None = None
    name: str = ""
    kind: str = ""
