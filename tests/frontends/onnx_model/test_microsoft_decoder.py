"""A decoder layer as generation toolkits export it: sizes from the attention mask, a growing cache, 4-bit weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from backend_cases import run_lowered
from onnx import TensorProto, helper, numpy_helper

from compiler.frontends.onnx_model.model_file import prepared
from compiler.frontends.onnx_model.reading import program_from_onnx
from compiler.program import Program
from compiler.sites import find_sites

VOCABULARY, WIDTH, HEADS, KV_HEADS, HEAD_DIM, BLOCK = 11, 64, 4, 2, 16, 32
MICROSOFT = "com.microsoft"
Arrays = dict[str, np.ndarray]


def decoder(accuracy_level: int = 0) -> onnx.ModelProto:
    random = np.random.default_rng(4)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32) * 0.2

    angles = normal(32, HEAD_DIM // 2) * 10
    stored = {
        "table": normal(VOCABULARY, WIDTH),
        "first_norm": 1 + normal(WIDTH),
        "second_norm": 1 + normal(WIDTH),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "one": np.array([1], np.int64),
        "place": np.array(1, np.int64),
        "head": normal(WIDTH, VOCABULARY),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("SimplifiedLayerNormalization", ["embedded", "first_norm"], ["normed"], epsilon=1e-5),
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["counts"], keepdims=0),
        helper.make_node("Sub", ["counts", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "place"], ["length"]),
        helper.make_node("Cast", ["length"], ["total"], to=TensorProto.INT32),
    ]
    for name, outputs in (("q", WIDTH), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM), ("o", WIDTH)):
        stored[f"{name}_weight"] = random.integers(0, 256, (outputs, WIDTH // BLOCK, BLOCK // 2)).astype(np.uint8)
        stored[f"{name}_scales"] = np.abs(normal(outputs, WIDTH // BLOCK)) / 4
        inputs = ["attended" if name == "o" else "normed", f"{name}_weight", f"{name}_scales"]
        options = {"K": WIDTH, "N": outputs, "bits": 4, "block_size": BLOCK, "accuracy_level": accuracy_level}
        nodes.append(helper.make_node("MatMulNBits", inputs, [name], domain=MICROSOFT, **options))
    given = ["q", "k", "v", "past_key", "past_value", "seqlens_k", "total", "cos", "sin"]
    options = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 1}
    results = ["attended", "present_key", "present_value"]
    attention = helper.make_node("GroupQueryAttention", given, results, domain=MICROSOFT, **options)
    projection = nodes.pop()
    nodes += [
        attention,
        projection,
        helper.make_node(
            "SkipSimplifiedLayerNormalization", ["embedded", "o", "second_norm"], ["out", "", "", "residual"],
            domain=MICROSOFT, epsilon=1e-5,
        ),
        helper.make_node("MatMul", ["out", "head"], ["logits"]),
    ]  # fmt: skip
    cache = ["batch", KV_HEADS, "past", HEAD_DIM]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
            helper.make_tensor_value_info("past_key", TensorProto.FLOAT, cache),
            helper.make_tensor_value_info("past_value", TensorProto.FLOAT, cache),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens", VOCABULARY]),
            helper.make_tensor_value_info("present_key", TensorProto.FLOAT, ["batch", KV_HEADS, "total", HEAD_DIM]),
            helper.make_tensor_value_info("present_value", TensorProto.FLOAT, ["batch", KV_HEADS, "total", HEAD_DIM]),
            helper.make_tensor_value_info("residual", TensorProto.FLOAT, ["batch", "tokens", WIDTH]),
        ],
        [numpy_helper.from_array(np.ascontiguousarray(one), name) for name, one in stored.items()],
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=versions, ir_version=9)


def inputs(batch: int, tokens: int, past: int) -> Arrays:
    random = np.random.default_rng(5)
    cache = (batch, KV_HEADS, past, HEAD_DIM)
    return {
        "input_ids": random.integers(0, VOCABULARY, (batch, tokens)),
        "attention_mask": np.ones((batch, past + tokens), np.int64),
        "past_key": random.standard_normal(cache).astype(np.float32),
        "past_value": random.standard_normal(cache).astype(np.float32),
    }


@pytest.fixture(scope="module")
def program() -> Program:
    model = prepared("reading a decoder", ir.serde.deserialize_model(decoder()))
    return program_from_onnx(model, doing="reading a decoder", source="decoder")


@pytest.mark.parametrize(("batch", "tokens", "past"), [(3, 1, 6), (1, 4, 3), (2, 5, 0)])
def test_prefill_and_decoding_at_any_size(program: Program, batch: int, tokens: int, past: int) -> None:
    """Read and lowered, products are computed in float32, as the model's accuracy_level 0 says."""
    feeds = inputs(batch, tokens, past)
    tensors = [torch.from_numpy(feeds[spec.name]) for spec in program.inputs]
    session = onnxruntime.InferenceSession(decoder().SerializeToString())
    expected = session.run([spec.name for spec in program.outputs], feeds)
    for found in (program.run(*tensors), run_lowered(program, tensors)):
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-3, atol=1e-4)


def test_its_sites_are_found(program: Program) -> None:
    (attention,) = find_sites(program, ["attention"])
    assert (attention.bindings["head_count"], attention.bindings["kv_head_count"]) == (HEADS, KV_HEADS)
    assert len(find_sites(program, ["norm"])) == 2
