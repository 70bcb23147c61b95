"""Outputs of a run, for people and for `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

MOST_COMPARED = 8
LARGEST_LISTED = 65_536
"""Elements of an output that `--json` lists; more belong into an .npz."""


def outputs_as_text(outputs: Mapping[str, np.ndarray[Any, Any]], *, embeddings: bool = False) -> str:
    """Name, dtype, shape and some values of every output; of embeddings also how alike the rows are."""
    lines = []
    for name, array in outputs.items():
        lines.append(f"{name}: {array.dtype}{list(array.shape)}")
        lines.append(np.array2string(array, precision=4, threshold=32, edgeitems=3, max_line_width=110))
        if embeddings and array.ndim == 2 and 1 < len(array) <= MOST_COMPARED:
            lines.append(f"cosine between the rows of {name}:")
            lines.append(np.array2string(row_cosines(array), precision=3, suppress_small=True, floatmode="fixed"))
    return "\n".join(lines)


def row_cosines(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The cosine between every two rows of [rows, width], as [rows, rows]."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    cosines: np.ndarray[Any, Any] = unit @ unit.T
    return cosines


def outputs_as_json(outputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Dtype, shape and values of every output; values are null for an output too large to list."""
    return {
        name: {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "values": _values(array) if array.size <= LARGEST_LISTED else None,
        }
        for name, array in outputs.items()
    }


def _values(array: np.ndarray[Any, Any]) -> Any:
    """Nested lists; null for what JSON has no number for."""
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        listed = array.astype(object)
        listed[~np.isfinite(array)] = None
        return listed.tolist()
    return array.tolist()
