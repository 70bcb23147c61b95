"""Cosines and sines of positions times frequencies are stored as the frequencies, a number a column.

Before:  GroupQueryAttention(..., cos, sin), RotaryEmbedding alike; both tables float32 [positions, n]
After:   cos = scale * Cos(angles), sin = scale * Sin(angles), angles = Range(positions)[:, None] * frequencies [n]
Near:    no entry is further than CLOSE from what its frequency gives. ONNX Runtime computes the tables once, when it
         opens the file.
Leaves:  small tables, and those that are of no frequencies.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.backends.onnx_runtime.graph_passes.stored_weights import register
from compiler.backends.onnx_runtime.graph_writer import MICROSOFT

TABLES = {("GroupQueryAttention", MICROSOFT): 7, ("RotaryEmbedding", MICROSOFT): 2, ("RotaryEmbedding", ""): 1}
"""Which input the cosines are, by operator; the sines come next."""
SMALL_BYTES = 2**14
"""What is not worth eight operators more."""
CLOSE = 3e-7
"""Two roundings of a float32 near 1, and half of one for the cosine of another library."""
NEIGHBOURS, SAMPLED_ROWS = 3, 512
"""Numbers on either side among which each frequency is looked for, on the last rows, which tell them apart best."""

Table = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def store_rotary_frequencies(graph: ir.Graph) -> int:
    """Rewrite all such pairs of tables; how many."""
    pairs: dict[tuple[ir.Value, ir.Value], None] = {}
    for node in graph.all_nodes():
        first = TABLES.get((node.op_type, node.domain))
        if first is None or len(node.inputs) < first + 2:
            continue
        cos, sin = node.inputs[first], node.inputs[first + 1]
        if cos is not None and sin is not None:
            pairs[cos, sin] = None
    return sum(_store(*pair, graph) for pair in pairs)


def frequencies(cos: Table, sin: Table) -> Table | None:
    """f [n] so that cos[p] and sin[p] are those of the float32 p * f; None where there are none."""
    positions = np.arange(len(cos), dtype=np.float32)[:, None]
    if cos.shape != sin.shape or len(cos) < 2 or not (np.isfinite(cos).all() and np.isfinite(sin).all()):
        return None
    phases = np.arctan2(sin.astype(np.float64), cos.astype(np.float64))
    about = phases[1]
    for row in (*(2**power for power in range(1, len(cos).bit_length()) if 2**power < len(cos)), len(cos) - 1):
        turns = np.round((about * row - phases[row]) / (2 * np.pi))
        about = (phases[row] + 2 * np.pi * turns) / row
    near = [about.astype(np.float32)]
    for direction in (-np.inf, np.inf):
        one = near[0]
        for _ in range(NEIGHBOURS):
            one = np.nextafter(one, np.float32(direction))
            near.append(one)
    last = slice(-SAMPLED_ROWS, None)
    errors = [_error(positions[last] * one, cos[last], sin[last]) for one in near]
    best = np.choose(np.argmin(errors, axis=0), near)
    return best if bool((_error(positions * best, cos, sin) <= CLOSE).all()) else None


def _error(angles: Table, cos: Table, sin: Table) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The largest distance in each column."""
    wide = angles.astype(np.float64)
    error: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.maximum(
        np.abs(np.cos(wide) - cos), np.abs(np.sin(wide) - sin)
    ).max(0)
    return error


def _store(cos: ir.Value, sin: ir.Value, graph: ir.Graph) -> bool:
    tables = [_table(one, graph) for one in (cos, sin)]
    if tables[0] is None or tables[1] is None or not tables[0].size:
        return False
    scale = tables[0][0, 0]
    found = frequencies(tables[0] / scale, tables[1] / scale) if scale > 0 else None
    if found is None:
        return False
    name = str(cos.name)
    stored = {
        part: register(graph, f"{name}.{part}", np.array(values))
        for part, values in {
            "frequencies": found,
            "first": np.float32(0),
            "count": np.float32(len(tables[0])),
            "step": np.float32(1),
            "axis": np.array([1], np.int64),
            "scale": scale,
        }.items()
    }
    start = graph[0]

    def emit(operator: str, *inputs: ir.Value, step: str) -> ir.Value:
        value = ir.Value(name=f"{name}.{step}", type=ir.TensorType(ir.DataType.FLOAT))
        graph.insert_before(start, ir.Node("", operator, inputs, outputs=[value], name=value.name))
        return value

    row = emit("Range", stored["first"], stored["count"], stored["step"], step="row")
    angles = emit("Mul", emit("Unsqueeze", row, stored["axis"], step="column"), stored["frequencies"], step="angles")
    for table, operator in ((cos, "Cos"), (sin, "Sin")):
        turned = emit(operator, angles, step=f"{operator.lower()}.unscaled")
        values = emit("Mul", turned, stored["scale"], step=operator.lower())
        values.shape = table.shape
        table.replace_all_uses_with(values)
        graph.initializers.pop(str(table.name))
    return True


def _table(value: ir.Value, graph: ir.Graph) -> Table | None:
    """What `graph` stores of a large float32 table."""
    tensor = value.const_value if graph.initializers.get(str(value.name)) is value else None
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        return None
    return np.array(tensor.numpy()) if tensor.nbytes > SMALL_BYTES else None
