"""Rewrites of the ONNX graph for the kernels that ONNX Runtime has, named after what they do.

Each is exact, but for tables of cosines, which are computed anew to the last bit or two.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from compiler.backends.onnx_runtime.graph_passes.attention_layout import absorb_head_transposes
from compiler.backends.onnx_runtime.graph_passes.dead_nodes import remove_dead_nodes
from compiler.backends.onnx_runtime.graph_passes.gathered_tables import store_tables_for_gather
from compiler.backends.onnx_runtime.graph_passes.hard_sigmoid import write_hard_sigmoids
from compiler.backends.onnx_runtime.graph_passes.leading_items import sort_leading_items_only
from compiler.backends.onnx_runtime.graph_passes.offset_products import write_offset_products
from compiler.backends.onnx_runtime.graph_passes.packed_projections import pack_projections
from compiler.backends.onnx_runtime.graph_passes.residual_sum import write_residuals_as_sum
from compiler.backends.onnx_runtime.graph_passes.rotary_tables import store_rotary_frequencies
from compiler.backends.onnx_runtime.graph_passes.scales_in_bytes import store_scales_in_bytes

GRAPH_PASSES: tuple[Callable[[ir.Graph], int], ...] = (
    absorb_head_transposes,
    pack_projections,
    store_tables_for_gather,
    write_residuals_as_sum,
    write_offset_products,
    store_scales_in_bytes,
    store_rotary_frequencies,
    write_hard_sigmoids,
    sort_leading_items_only,
    remove_dead_nodes,
)
"""In the order they run. Each returns how many places it changed."""
