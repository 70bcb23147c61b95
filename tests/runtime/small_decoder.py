"""A tiny decoder artifact made by hand, and the same decoder in plain numpy over whole sequences.

Two layers of grouped-query attention with rotary positions (or one of them, and a plain recurrent one), vocabulary 64,
random weights: a torch-free stand-in for a compiled language model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from compiler.artifact import ArtifactContents, ArtifactDraft, staged_artifact
from compiler.backend import Lowered
from compiler.runtime.manifest import DimensionRange, GenerationRecord, Manifest, StateRecord, TensorRecord

Array = np.ndarray[Any, Any]

VOCABULARY, WIDTH, HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 64, 32, 4, 2, 16, 600
BEGIN, END = 0, 1
SPECIAL = ("<s>", "</s>")
GOLDEN_CAPACITY = 8
CHAT_TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


class SmallDecoder:
    """The weights, and what they give."""

    def __init__(self, seed: int = 0, recurrent: bool = False) -> None:
        random = np.random.default_rng(seed)
        self.recurrent = recurrent
        sizes = {"embedding": (VOCABULARY, WIDTH), "head": (WIDTH, VOCABULARY)}
        for layer in self.attention_layers:
            sizes |= {f"q{layer}": (WIDTH, HEADS * HEAD_DIM), f"o{layer}": (HEADS * HEAD_DIM, WIDTH)}
            sizes |= {f"k{layer}": (WIDTH, KV_HEADS * HEAD_DIM), f"v{layer}": (WIDTH, KV_HEADS * HEAD_DIM)}
        if recurrent:
            sizes |= {"w": (WIDTH, WIDTH), "r": (WIDTH, WIDTH)}
        self.weights = {
            name: (random.standard_normal(shape) * (1.0 if name == "embedding" else shape[0] ** -0.5)).astype("float32")
            for name, shape in sizes.items()
        }
        self.weights["head"] *= 4
        angles = np.outer(np.arange(CONTEXT), 100.0 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2)))
        self.cos, self.sin = np.cos(angles).astype("float32"), np.sin(angles).astype("float32")

    @property
    def attention_layers(self) -> range:
        """Which layers attend; with `recurrent` the last one does not."""
        return range(1 if self.recurrent else 2)

    def logits(self, tokens: Sequence[int]) -> Array:
        """[tokens, vocabulary] of one text."""
        return self.run(tokens)[0]

    def run(self, tokens: Sequence[int]) -> tuple[Array, dict[str, Array]]:
        """Logits [tokens, vocabulary] of one text by the formulas, over the whole sequence, and the states after it:
        keys and values [kv_heads, tokens, head_dim].
        """
        states = {}
        w = {name: value.astype(np.float64) for name, value in self.weights.items()}
        x = w["embedding"][list(tokens)]
        for layer in self.attention_layers:
            q, k = self._rotated(x @ w[f"q{layer}"], HEADS), self._rotated(x @ w[f"k{layer}"], KV_HEADS)
            v = (x @ w[f"v{layer}"]).reshape(len(x), KV_HEADS, HEAD_DIM)
            states[f"present.{layer}.key"], states[f"present.{layer}.value"] = k.swapaxes(0, 1), v.swapaxes(0, 1)
            mixed = np.zeros((len(x), HEADS, HEAD_DIM))
            for token in range(len(x)):
                for head in range(HEADS):
                    group = head // (HEADS // KV_HEADS)
                    scores = k[: token + 1, group] @ q[token, head] / np.sqrt(HEAD_DIM)
                    weights = np.exp(scores - scores.max())
                    mixed[token, head] = weights @ v[: token + 1, group] / weights.sum()
            x = x + mixed.reshape(len(x), -1) @ w[f"o{layer}"]
        if self.recurrent:
            state, seen = np.zeros(WIDTH), []
            for row in x:
                state = np.tanh(row @ w["w"] + state @ w["r"])
                seen.append(state)
            x = x + np.array(seen)
            states["present_state.1"] = state
        return x @ w["head"], states

    def greedy(self, prompt: Sequence[int], count: int, end: Sequence[int] = (END,)) -> list[int]:
        """The likeliest continuation, up to and with a token of `end`."""
        tokens: list[int] = []
        while len(tokens) < count and not (tokens and tokens[-1] in end):
            tokens.append(int(self.logits([*prompt, *tokens])[-1].argmax()))
        return tokens

    def _rotated(self, x: Array, heads: int) -> Array:
        x = x.reshape(len(x), heads, HEAD_DIM)
        first, second = x[..., : HEAD_DIM // 2], x[..., HEAD_DIM // 2 :]
        cos, sin = self.cos[: len(x), None], self.sin[: len(x), None]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def write_decoder(
    folder: Path,
    model_folder: Path,
    seed: int = 0,
    *,
    recurrent: bool = False,
    end_tokens: tuple[int, ...] = (END,),
    template: bool = True,
) -> Manifest:
    """A whole artifact of a SmallDecoder, with a tokenizer of one token a character."""
    decoder = SmallDecoder(seed, recurrent)
    tokens = np.array([[5, 9, 33, 2, 60], [7, 7, 8, 50, 3]])
    states = _states(decoder)
    inputs = (
        TensorRecord("input_ids", "int64", ("batch", "sequence")),
        TensorRecord("attention_mask", "int64", ("batch", "total_sequence")),
        TensorRecord("logit_positions", "int64", ("kept",)),
        *(TensorRecord(past, "float32", shape) for past, _, shape in states),
    )
    outputs = (
        TensorRecord("logits", "float32", ("batch", "kept", VOCABULARY)),
        *(TensorRecord(present, "float32", shape) for _, present, shape in states),
    )
    sizes = {"batch": 2, "capacity": GOLDEN_CAPACITY}
    empty = {past: np.zeros([sizes.get(str(dim), dim) for dim in shape], "float32") for past, _, shape in states}
    given = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "logit_positions": np.arange(5), **empty}
    contents = ArtifactContents(
        name="small",
        role="causal-lm",
        backend="onnx_runtime",
        target="cpu",
        inputs=inputs,
        outputs=outputs,
        dimensions={name: DimensionRange() for spec in inputs for name in spec.shape if isinstance(name, str)},
        golden_inputs=given,
        reference=_reference(decoder, tokens, outputs),
        tolerance=1e-4,
        recipe='model = "small"\n',
        tokenizer=write_character_tokenizer(model_folder, template),
        generation=GenerationRecord(
            states=tuple(StateRecord(past, present) for past, present, _ in states),
            vocabulary_size=VOCABULARY,
            context_length=CONTEXT,
            end_tokens=end_tokens,
            beginning_token=BEGIN,
        ),
    )
    with staged_artifact(folder) as staging:
        lowered = _lower(decoder, inputs, outputs, staging)
        return ArtifactDraft(staging, lowered, contents).finish({}, {})


def write_character_tokenizer(folder: Path, template: bool = True) -> Path:
    """A model's folder: a byte-level tokenizer of the first 62 printable characters, two special tokens, a template.

    The last two tokens are the two bytes of `ä`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    characters = ["Ġ", "Ċ", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXY.,:!?-'"][: VOCABULARY - 4]
    words = [*SPECIAL, *characters, "Ã", "¤"]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": SPECIAL[0], "eos_token": {"content": SPECIAL[1]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if template:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


def _states(decoder: SmallDecoder) -> list[tuple[str, str, tuple[int | str, ...]]]:
    shape = ("batch", KV_HEADS, "capacity", HEAD_DIM)
    states: list[tuple[str, str, tuple[int | str, ...]]] = [
        (f"past_key_values.{layer}.{part}", f"present.{layer}.{part}", shape)
        for layer in decoder.attention_layers
        for part in ("key", "value")
    ]
    return [*states, ("past_state.1", "present_state.1", ("batch", WIDTH))] if decoder.recurrent else states


def _reference(decoder: SmallDecoder, tokens: Array, outputs: Sequence[TensorRecord]) -> dict[str, Array]:
    """What the golden inputs give: logits of every token, and buffers that are empty after the last."""
    rows = []
    for text in tokens:
        logits, states = decoder.run(text.tolist())
        room = ((0, 0), (0, GOLDEN_CAPACITY - len(text)), (0, 0))
        rows.append({"logits": logits} | {n: np.pad(s, room) if s.ndim == 3 else s for n, s in states.items()})
    return {spec.name: np.stack([row[spec.name] for row in rows]).astype("float32") for spec in outputs}


def _lower(
    decoder: SmallDecoder, inputs: Sequence[TensorRecord], outputs: Sequence[TensorRecord], folder: Path
) -> Lowered:
    node = helper.make_node
    nodes = [
        node("Gather", ["embedding", "input_ids"], ["x0"]),
        node("ReduceSum", ["attention_mask", "one"], ["total"], keepdims=0),
        node("Sub", ["total", "one"], ["last"]),
        node("Cast", ["last"], ["seqlens"], to=TensorProto.INT32),
        node("Shape", ["attention_mask"], ["width"], start=1, end=2),
        node("Squeeze", ["width"], ["width_scalar"]),
        node("Cast", ["width_scalar"], ["longest"], to=TensorProto.INT32),
    ]
    for layer in decoder.attention_layers:
        nodes += [node("MatMul", [f"x{layer}", f"{part}{layer}"], [f"{part}_{layer}"]) for part in "qkv"]
        past, present = (
            [f"{stem}.{layer}.{part}" for part in ("key", "value")] for stem in ("past_key_values", "present")
        )
        nodes += [
            node(
                "GroupQueryAttention",
                [*(f"{part}_{layer}" for part in "qkv"), *past, "seqlens", "longest", "cos", "sin"],
                [f"mixed_{layer}", *present],
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=KV_HEADS,
                do_rotary=1,
            ),
            node("MatMul", [f"mixed_{layer}", f"o{layer}"], [f"added_{layer}"]),
            node("Add", [f"x{layer}", f"added_{layer}"], [f"x{layer + 1}"]),
        ]
    if decoder.recurrent:
        nodes += [
            node("Transpose", ["x1"], ["rows"], perm=[1, 0, 2]),
            node("Unsqueeze", ["past_state.1", "zero"], ["initial"]),
            node("RNN", ["rows", "W", "R", "", "", "initial"], ["seen", "final"], hidden_size=WIDTH),
            node("Squeeze", ["final", "zero"], ["present_state.1"]),
            node("Squeeze", ["seen", "one"], ["states"]),
            node("Transpose", ["states"], ["added_1"], perm=[1, 0, 2]),
            node("Add", ["x1", "added_1"], ["x2"]),
        ]
    nodes += [
        node("Gather", ["x2", "logit_positions"], ["kept_rows"], axis=1),
        node("MatMul", ["kept_rows", "head"], ["logits"]),
    ]
    constants = {"one": np.array([1]), "zero": np.array([0]), "cos": decoder.cos, "sin": decoder.sin}
    weights = dict(decoder.weights)
    if decoder.recurrent:
        constants |= {"W": weights.pop("w").T[None].copy(), "R": weights.pop("r").T[None].copy()}
    kinds = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(spec.name, kinds[spec.dtype], list(spec.shape)) for spec in inputs],
        [helper.make_tensor_value_info(spec.name, kinds[spec.dtype], list(spec.shape)) for spec in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants | weights).items()],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return Lowered("model.onnx", ("model.onnx",), "onnxruntime", {"onnxruntime": "1.20"})
