"""Readable names for sites: the path of the module a node came from, without the wrappers around the model.

`model.model.layers.0.self_attn.q_proj` becomes `layers.0.self_attn.q_proj`. Where a graph has no module paths, as after
an ONNX import, the name of the weight stands in, and where there is no weight the name of the node.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

from torch import fx

from compiler.sites.site import Refusal

WRAPPERS = frozenset({"model", "module", "_orig_mod", "wrapped"})


def module_path(node: fx.Node) -> str:
    """The path of the innermost module that `node` was traced in, without leading wrappers; "" where none is known."""
    for path, _ in reversed(list((node.meta.get("nn_module_stack") or {}).values())):
        if isinstance(path, str) and path and not path.startswith("_"):
            return without_wrappers(path)
    return ""


def without_wrappers(path: str) -> str:
    """`path` without the leading components that only wrap a model; the last component always stays."""
    parts = path.removeprefix("L['self'].").split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        parts = parts[1:]
    return "" if parts == ["model"] else ".".join(parts)


def weighted_name(node: fx.Node, weight: str | None) -> str:
    """The name of a site that is one layer: its module path, else where its weight is kept, else the node's name."""
    path = module_path(node)
    if path:
        return path
    if weight:
        owner, _, leaf = weight.rpartition(".")
        return without_wrappers(owner if owner and leaf in ("weight", "bias") else weight)
    return node.name


def refusal(kind: str, reason: str, node: fx.Node, weight: str | None = None) -> Refusal:
    """The refusal of a place of `kind` at `node`, under the name that the site would have had."""
    return Refusal(reason, node.name, weighted_name(node, weight), kind)


def block_name(parts: Iterable[str], fallback: str, suffix: str) -> str:
    """The deepest module that holds all of `parts`, with `suffix` where that is a numbered layer or the whole model.

    `encoder.layer.0.intermediate.dense` and `encoder.layer.0.output.dense` give `encoder.layer.0.feed_forward`.
    """
    shared = shared_path(parts)
    if not shared:
        return fallback or suffix
    return f"{shared}.{suffix}" if shared.rpartition(".")[2].isdecimal() else shared


def shared_path(paths: Iterable[str]) -> str:
    """The leading components that all `paths` have in common, without the last component of any of them."""
    split = [path.split(".")[:-1] for path in paths if path]
    if not split:
        return ""
    shared = split[0]
    for other in split[1:]:
        shared = [ours for ours, _ in takewhile(lambda pair: pair[0] == pair[1], zip(shared, other, strict=False))]
    return ".".join(shared)


def unique(name: str, taken: set[str]) -> str:
    """`name`, or `name@2`, `name@3`, ... for a module that is called more than once. The result is added to `taken`."""
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}@{count}"
    taken.add(candidate)
    return candidate
