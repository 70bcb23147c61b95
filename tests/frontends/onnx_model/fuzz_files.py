"""Mutates small ONNX files and loads each: whatever a file holds, the answer is a Program or one CompilerError.

    python tests/frontends/onnx_model/fuzz_files.py [--count 2000] [--seed 0]

prints what went wrong as JSON: other exceptions, loads of more than ten seconds, the peak memory of the process. A
crash ends the process; the number of the file stands last on standard error.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from backend_cases import cases, model_of

from compiler.errors import CompilerError
from compiler.evidence.cost import peak_memory_bytes
from compiler.frontends import LoadOptions
from compiler.frontends.onnx_model import OnnxModel

SEEDS = {
    "pytorch-converted": ("test_Conv2d_groups", "test_BatchNorm2d_eval", "test_Linear", "test_MaxPool2d"),
    "pytorch-operator": ("test_operator_mm", "test_operator_pad", "test_operator_reduced_mean"),
    "node": (
        "test_attention_4d", "test_lstm_with_initial_bias", "test_if", "test_loop11", "test_qlinearconv",
        "test_resize_upsample_scales_nearest", "test_gather_elements_0", "test_reshape_extended_dims",
        "test_sequence_insert_at_back",
        "test_layer_normalization_default_axis", "test_convtranspose", "test_einsum_batch_matmul", "test_scan9_sum",
    ),
}  # fmt: skip
LONGEST_SECONDS = 10.0
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**40, 2**62, -(2**63))


def seed_models() -> list[bytes]:
    """The files that are mutated."""
    found = []
    for kind, names in SEEDS.items():
        known = cases(kind)
        found += [model_of(known[name]).SerializeToString() for name in names if name in known]
    return found


def flip_bytes(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def move_a_piece(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    piece = data[start : start + chance.randint(1, 64)]
    place = chance.randrange(len(data))
    return data[:place] + piece + data[place + chance.choice((0, len(piece))) :]


def change_structure(data: bytes, chance: random.Random) -> bytes:
    """A file that protobuf reads: other names, types, numbers and links."""
    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    for _ in range(chance.randint(1, 3)):
        chance.choice(STRUCTURAL)(model, graph, chance)
    return bytes(model.SerializeToString())


def _relink(model: Any, graph: Any, chance: random.Random) -> None:
    node = chance.choice(graph.node)
    names = [name for one in graph.node for name in (*one.input, *one.output)] + [one.name for one in graph.initializer]
    if node.input:
        node.input[chance.randrange(len(node.input))] = chance.choice([*names, "", "nowhere"])


def _rename_operator(model: Any, graph: Any, chance: random.Random) -> None:
    schemas = onnx.defs.get_all_schemas()
    chance.choice(graph.node).op_type = chance.choice(schemas).name


def _change_attribute(model: Any, graph: Any, chance: random.Random) -> None:
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    if not attributes:
        return
    attribute = chance.choice(attributes)
    attribute.i = chance.choice(NUMBERS)
    if attribute.ints:
        attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(NUMBERS)
    attribute.f = chance.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
    if chance.random() < 0.2:
        attribute.type = chance.randrange(15)


def _change_dims(model: Any, graph: Any, chance: random.Random) -> None:
    shaped = [one.type.tensor_type.shape.dim for one in graph.input] + [one.dims for one in graph.initializer]
    dims = chance.choice(shaped) if shaped else ()
    if not dims:
        return
    place = chance.randrange(len(dims))
    if isinstance(dims[place], int):
        dims[place] = chance.choice(NUMBERS)
    else:
        dims[place].dim_value = chance.choice(NUMBERS)


def _change_type(model: Any, graph: Any, chance: random.Random) -> None:
    chance.choice(graph.input).type.tensor_type.elem_type = chance.randrange(27)


def _change_numbers(model: Any, graph: Any, chance: random.Random) -> None:
    for tensor in graph.initializer:
        if tensor.int64_data:
            tensor.int64_data[chance.randrange(len(tensor.int64_data))] = chance.choice(NUMBERS)
        elif tensor.raw_data:
            tensor.raw_data = flip_bytes(tensor.raw_data, chance)


def _change_opset(model: Any, graph: Any, chance: random.Random) -> None:
    model.opset_import[0].version = chance.choice((*range(1, 29), 99, -1))


def _drop_or_repeat(model: Any, graph: Any, chance: random.Random) -> None:
    node = chance.choice(graph.node)
    if chance.random() < 0.5 and len(graph.node) > 1:
        graph.node.remove(node)
    else:
        graph.node.append(node)


STRUCTURAL: tuple[Callable[[Any, Any, random.Random], None], ...] = (
    _relink, _rename_operator, _change_attribute, _change_dims, _change_type, _change_numbers, _change_opset,
    _drop_or_repeat,
)  # fmt: skip
MUTATIONS = (flip_bytes, cut, move_a_piece, change_structure, change_structure, change_structure)


def main() -> int:
    """Load the mutated files and print what went wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    seeds = seed_models()
    report: dict[str, Any] = {"loaded": 0, "refused": 0, "wrong": [], "slow": []}
    before = peak_memory_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for number in range(asked.count):
            print(number, file=sys.stderr, flush=True)
            chance = random.Random(asked.seed * 1_000_003 + number)
            path.write_bytes(chance.choice(MUTATIONS)(chance.choice(seeds), chance))
            started = time.perf_counter()
            try:
                OnnxModel().load(str(path), LoadOptions())
                report["loaded"] += 1
            except CompilerError as error:
                report["refused"] += 1
                if "\n" in str(error) or not error.hint:
                    report["wrong"].append([number, f"no single line with a hint: {error}"])
            except Exception as error:
                report["wrong"].append([number, "".join(traceback.format_exception(error)[-3:])])
            seconds = time.perf_counter() - started
            if seconds > LONGEST_SECONDS:
                report["slow"].append([number, round(seconds, 1)])
    report["peak_bytes_before"], report["peak_bytes"] = before, peak_memory_bytes()
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
