"""Small artifacts around real ONNX models, whose numbers numpy gives on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compiler.artifact import ArtifactContents, ArtifactDraft, staged_artifact
from compiler.backend import Lowered
from compiler.runtime.manifest import DimensionRange, Manifest, PassRecord, TensorRecord

Arrays = dict[str, np.ndarray[Any, Any]]

WIDTH = 8
WORDS = ("[PAD]", "[UNK]", "the", "cat", "sat", "on", "a", "mat")
MOST_TOKENS = 6
REPORTS = {"report.html": b"<!doctype html><title>report</title>", "report.json": b"{}\n"}


def linear_weights(seed: int, columns: int = 3) -> np.ndarray[Any, Any]:
    """[WIDTH, columns] float32."""
    return np.random.default_rng(seed).standard_normal((WIDTH, columns)).astype(np.float32)


def linear_reference(x: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> Arrays:
    """What the linear model gives, by numpy."""
    scores = np.matmul(x, weights)
    return {"scores": scores, "choice": scores.argmax(-1)}


def linear_contents(seed: int = 0, columns: int = 3) -> ArtifactContents:
    """Everything but the payload of the model `scores = x @ weights, choice = argmax(scores)`."""
    x = np.random.default_rng(seed + 1).standard_normal((2, WIDTH)).astype(np.float32)
    return ArtifactContents(
        name="linear",
        role="classifier",
        backend="onnx_runtime",
        target="cpu",
        inputs=(TensorRecord("x", "float32", ("batch", WIDTH)),),
        outputs=(TensorRecord("scores", "float32", ("batch", columns)), TensorRecord("choice", "int64", ("batch",))),
        dimensions={"batch": DimensionRange(1, 64)},
        golden_inputs={"x": x},
        reference=linear_reference(x, linear_weights(seed, columns)),
        tolerance=1e-5,
        recipe='model = "linear"\n',
        passes=(PassRecord("quantize", {"bits": 8}),),
        versions={"numpy": np.__version__},
    )


def lower_linear(folder: Path, seed: int = 0, columns: int = 3) -> Lowered:
    """Write the linear model as model.onnx."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weights"], ["scores"]),
            helper.make_node("ArgMax", ["scores"], ["choice"], axis=1, keepdims=0),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", columns]),
            helper.make_tensor_value_info("choice", TensorProto.INT64, ["batch"]),
        ],
        [numpy_helper.from_array(linear_weights(seed, columns), "weights")],
    )
    return _saved(graph, folder)


def write_linear(folder: Path, seed: int = 0, columns: int = 3) -> Manifest:
    """A whole artifact of the linear model."""
    with staged_artifact(folder) as staging:
        draft = ArtifactDraft(staging, lower_linear(staging, seed, columns), linear_contents(seed, columns))
        return draft.finish({"mean_cosine": 0.999}, REPORTS)


def write_tokenizer_files(folder: Path) -> Path:
    """A model's folder with a word-level tokenizer of WORDS and its limits."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(max_length=2)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"model_max_length": MOST_TOKENS, "pad_token": {"content": "[PAD]"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def write_bag_of_words(folder: Path, model_folder: Path) -> Manifest:
    """A whole artifact of a text model: `total = sum of table[input_ids] * attention_mask`, table [words, 4]."""
    table = np.arange(len(WORDS) * 4, dtype=np.float32).reshape(-1, 4)
    ids = np.array([[2, 3, 4], [6, 7, 0]])
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    contents = ArtifactContents(
        name="bag",
        role="encoder",
        backend="onnx_runtime",
        target="cpu",
        inputs=tuple(TensorRecord(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")),
        outputs=(TensorRecord("total", "float32", ("batch", 4)),),
        dimensions={"batch": DimensionRange(), "sequence": DimensionRange(1, 512)},
        golden_inputs={"input_ids": ids, "attention_mask": mask},
        reference={"total": (table[ids] * mask[..., None]).sum(1).astype(np.float32)},
        tolerance=1e-5,
        recipe='model = "bag"\n',
        tokenizer=write_tokenizer_files(model_folder),
    )
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Cast", ["attention_mask"], ["float_mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["float_mask", "last"], ["weights"]),
            helper.make_node("Mul", ["rows", "weights"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "tokens"], ["total"], keepdims=0),
        ],
        "bag",
        [helper.make_tensor_value_info(spec.name, TensorProto.INT64, list(spec.shape)) for spec in contents.inputs],
        [helper.make_tensor_value_info("total", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(np.array([1]), "tokens"),
        ],
    )
    with staged_artifact(folder) as staging:
        return ArtifactDraft(staging, _saved(graph, staging), contents).finish({}, REPORTS)


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    """Change entries of a manifest and give it a valid sha256 again, as a forger would."""
    from compiler.runtime.manifest import _canonical, _digest

    path = folder / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["sha256"]
    content.update(changes)
    path.write_text(_canonical({**content, "sha256": _digest(content)}), encoding="utf-8")


def _saved(graph: onnx.GraphProto, folder: Path) -> Lowered:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return Lowered("model.onnx", ("model.onnx",), "onnxruntime", {"onnxruntime": "1.17"})
