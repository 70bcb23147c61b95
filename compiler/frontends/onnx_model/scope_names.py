"""Where in its model an ONNX node stands, as a module path: sites get their names from it.

Exporters leave the path in different places: the dynamo exporter of PyTorch writes a list of scopes into the node's
metadata, the older one names nodes `/encoder/layer.0/attention/MatMul`, others `encoder/layer_0/MatMul:0`.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
LAST_SUFFIX = re.compile(r":\d+$")


def scope_path(node: ir.Node) -> str:
    """The dotted path of the module that the node came from; "" where the model does not say."""
    scopes = node.metadata_props.get(SCOPES_KEY)
    if scopes:
        return _innermost(scopes)
    return _folder(node.name or "")


@cache
def _innermost(scopes: str) -> str:
    """The deepest module path of `['', 'encoder', 'encoder.layer.0', 'linear_1']`, whose last entry is the node."""
    try:
        listed = ast.literal_eval(scopes)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    paths = [one for one in listed[:-1] if isinstance(one, str)] if isinstance(listed, list) else []
    return paths[-1] if paths else ""


@cache
def _folder(name: str) -> str:
    """`encoder.layer.0` of `/encoder/layer.0/MatMul_1`."""
    parts = [part for part in LAST_SUFFIX.sub("", name).split("/") if part]
    return ".".join(parts[:-1])
