"""genai_config.json, so that onnxruntime-genai opens a decoder artifact as it is.

onnxruntime-genai feeds tokens, their mask and caches, and knows nothing of `logit_positions`: the file therefore gives
that input a default, the last position, and declares the one row of logits that follows from it. Whoever gives the
input gets as many rows as positions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.generation_record import generation_record
from compiler.states import KEPT_POSITIONS, MASK, TOKENS

if TYPE_CHECKING:
    import onnx_ir as ir

    from compiler.program import Program

CONFIG_NAME = "genai_config.json"
TOKENIZER_SETTINGS = "tokenizer_config.json"
PAST_NAMES = {"key": "past_key_values.%d.key", "value": "past_key_values.%d.value"}
PRESENT_NAMES = {"key": "present.%d.key", "value": "present.%d.value"}


def genai_obstacle(program: Program) -> str | None:
    """Why onnxruntime-genai cannot run an incremental Program, or None where it can."""
    layers = len(program.states) // 2
    expected = [(PAST_NAMES[kind] % i, PRESENT_NAMES[kind] % i) for i in range(layers) for kind in PAST_NAMES]
    if sorted(expected) != sorted((state.past, state.present) for state in program.states):
        return "it keeps states other than keys and values"
    specs = {spec.name: spec for spec in program.inputs}
    if unknown := specs.keys() - {TOKENS, MASK, KEPT_POSITIONS} - {past for past, _ in expected}:
        return f"it reads {', '.join(sorted(unknown))}"
    if len({(specs[past].dtype, specs[past].shape) for past, _ in expected}) > 1:
        return "its layers keep caches of several forms"
    if program.context_length is None:
        return "it does not say how many tokens it was made for"
    record = generation_record(program)
    if record is None or not record.end_tokens:
        return "it has no token that ends a text"
    return None


def give_positions_a_default(graph: ir.Graph) -> None:
    """Let `logit_positions` be left out: then the logits are those of the last token."""
    import onnx_ir as ir

    positions = next(value for value in graph.inputs if value.name == KEPT_POSITIONS)
    positions.const_value = ir.tensor(np.array([-1], np.int64), name=KEPT_POSITIONS)
    graph.register_initializer(positions)
    logits = graph.outputs[0]
    assert logits.shape is not None
    logits.shape = ir.Shape([logits.shape[0], 1, *logits.shape[2:]])


def write_genai_config(program: Program, graph: ir.Graph, folder: Path, entry: str) -> tuple[str, ...]:
    """Write genai_config.json for the file `entry`, and the tokenizer's settings that it goes with: their names."""
    text = json.dumps(genai_config(program, graph, entry), indent=2) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    settings = None if program.tokenizer is None else program.tokenizer / TOKENIZER_SETTINGS
    if settings is None or not settings.is_file():
        return (CONFIG_NAME,)
    shutil.copyfile(settings, folder / TOKENIZER_SETTINGS)
    return (CONFIG_NAME, TOKENIZER_SETTINGS)


def genai_config(program: Program, graph: ir.Graph, entry: str) -> dict[str, Any]:
    """What onnxruntime-genai has to know of a decoder for which `genai_obstacle` is None."""
    record = generation_record(program)
    assert record is not None
    _, kv_heads, _, head_size = next(spec.shape for spec in program.inputs if spec.name == program.states[0].past)
    assert isinstance(head_size, int), "buffers have room for tokens, not for heads of any size"
    heads = _query_heads(graph)
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": entry,
        "head_size": head_size,
        "hidden_size": heads * head_size,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": len(program.states) // 2,
        "inputs": {
            "input_ids": TOKENS,
            "attention_mask": MASK,
            "past_key_names": PAST_NAMES["key"],
            "past_value_names": PAST_NAMES["value"],
        },
        "outputs": {
            "logits": program.outputs[0].name,
            "present_key_names": PRESENT_NAMES["key"],
            "present_value_names": PRESENT_NAMES["value"],
        },
    }
    model = {
        "type": "decoder",
        "vocab_size": record.vocabulary_size,
        "context_length": record.context_length,
        "bos_token_id": _first(record.end_tokens) if record.beginning_token is None else record.beginning_token,
        "eos_token_id": list(record.end_tokens),
        "pad_token_id": _first(record.end_tokens),
        "decoder": decoder,
    }
    search = {"max_length": record.context_length, "past_present_share_buffer": True, "do_sample": False}
    return {"model": model, "search": search}


def _query_heads(graph: ir.Graph) -> int:
    counts = [node.attributes.get_int("num_heads", 0) for node in graph if node.op_type == "GroupQueryAttention"]
    return _first(counts)


def _first(values: Sequence[int]) -> int:
    return values[0]
