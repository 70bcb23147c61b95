"""The sites of a Program as plain values, for --json and for tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compiler.program_text import symbol_names, value_text
from compiler.sites import Refusal, Site

if TYPE_CHECKING:
    from compiler.program import Program

HIDDEN_BINDINGS = frozenset({"weight", "bias", "weight_transposed"})
"""What the site's name and shapes already say, or what only passes ask for."""


def site_documents(program: Program, found: Sequence[Site | Refusal]) -> list[dict[str, Any]]:
    """Kind, name, shapes and bindings of every site, in graph order."""
    symbols = symbol_names(program)
    return [
        {
            "kind": site.kind,
            "name": site.name,
            "inputs": [value_text(node, symbols) for node in site.inputs],
            "output": value_text(site.output, symbols),
            "bindings": {key: _plain(value) for key, value in site.bindings.items()},
            "bytes": site_bytes(program, site),
        }
        for site in found
        if isinstance(site, Site)
    ]


def refusal_documents(found: Sequence[Site | Refusal]) -> list[dict[str, Any]]:
    """What was nearly a site, and why it is none."""
    return [
        {"kind": one.kind, "name": one.name, "node": one.node, "reason": one.reason}
        for one in found
        if isinstance(one, Refusal)
    ]


def site_bytes(program: Program, site: Site) -> int:
    """Bytes of the weights that the site's nodes read, each once."""
    from compiler.program import storage_bytes

    nodes = {near for node in site.nodes for near in (node, *node.all_input_nodes) if near.op == "get_attr"}
    return storage_bytes([program.weight(node) for node in nodes])


def site_row(document: dict[str, Any]) -> tuple[str, str, str]:
    """Name, shapes, and the bindings that the shapes and the name do not say: no names of weights, no absent ones."""
    inputs = [f"{count} x {shape}" if count > 1 else shape for shape, count in Counter(document["inputs"]).items()]
    bindings = [
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in document["bindings"].items()
        if key not in HIDDEN_BINDINGS and value is not None and not (isinstance(value, str) and "." in value)
    ]
    return document["name"], f"{', '.join(inputs)} -> {document['output']}", ", ".join(bindings)


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
