"""Data that evidence is taken on: text, jsonl, npz or a folder of these; without any, a small set that is shipped.

Samples are split in two by turns: calibration samples are for passes to look at, scoring samples judge the result. A
line of text is a sample, except for language models: these read windows of consecutive tokens (token_windows.py). Of
many samples some are taken, evenly from all files.
Healing asks for samples to train on as well: what is left over, or else part of those that do not score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from compiler.errors import CompilerError
from compiler.evidence.language import MASK, TOKENS, is_language_model
from compiler.evidence.random_inputs import random_batches
from compiler.evidence.token_windows import CALIBRATION_TURN, SHIPPED_PROSE, token_windows
from compiler.runtime.manifest import DimensionRange
from compiler.runtime.tensor_file import read_tensors

if TYPE_CHECKING:
    from compiler.program import Program

SHIPPED_SENTENCES = Path(__file__).parent / "sentences.txt"
SAMPLE_LIMIT = 512
TRAINING_SAMPLE_LIMIT = 16384
LEAST_TRAINING_SAMPLES = 128
"""Left-over samples that make a training part; with fewer, three of four calibration samples join them."""
BATCH_SIZE = 16
LONGEST_TEXT_TOKENS = 256

RANKING_WINDOWS = 2
SAMPLE, WINDOW = "sample", "window"

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Dataset:
    """Batches in the order of a Program's inputs.

    `scoring` judges, `calibration` is what passes may look at, `training` what healing learns from, where it was asked
    for; they share no sample. `shipped` says that the user gave no data. `mask_index` is the position of the input that
    marks padding, where there is one. `unit` names a sample.
    """

    name: str
    scoring: tuple[Batch, ...]
    calibration: tuple[Batch, ...]
    shipped: bool = False
    mask_index: int | None = None
    unit: str = SAMPLE
    training: tuple[Batch, ...] = ()

    @property
    def scoring_count(self) -> int:
        """Samples that judge."""
        return sum(_sample_count(batch) for batch in self.scoring)

    @property
    def calibration_count(self) -> int:
        """Samples that passes may look at."""
        return sum(_sample_count(batch) for batch in self.calibration)

    @property
    def ranking(self) -> tuple[Batch, ...]:
        """What sites are ranked on, one measurement a site: part of the calibration data where all would take long."""
        return self.calibration[:RANKING_WINDOWS] if self.unit == WINDOW else self.calibration

    @property
    def ranking_count(self) -> int:
        """Samples that sites are ranked on."""
        return sum(_sample_count(batch) for batch in self.ranking)

    def row_mask(self, batch: Batch, output: Tensor) -> Tensor | None:
        """Which rows of an output [batch, tokens, width] are no padding; None where every row counts."""
        if self.mask_index is None:
            return None
        mask = batch[self.mask_index]
        return mask.bool() if output.dim() == 3 and output.shape[:2] == mask.shape else None


def _sample_count(batch: Batch) -> int:
    """The samples in a batch: one where no input has a dim for them."""
    return next((len(tensor) for tensor in batch if tensor.dim()), 1)


def load_dataset(given: str | None, program: Program, seed: int = 0, training_tokens: int = 0) -> Dataset:
    """The data at path `given`, or shipped data, as batches for `program`.

    With `training_tokens`, the number wanted, there is a part to train on. Raises CompilerError when the data cannot be
    read, is empty or does not fit the inputs.
    """
    if given is None:
        return _shipped(program, seed, training_tokens)
    path = Path(given)
    doing = f"reading data {given}"
    if not path.exists():
        raise CompilerError(
            doing, "there is no such file or folder", "Give a .txt, .jsonl or .npz file, or a folder of these."
        )
    files = sorted(p for p in path.rglob("*") if p.suffix in READERS) if path.is_dir() else [path]
    if not files:
        raise CompilerError(
            doing, "the folder holds no .txt, .jsonl or .npz file", "Put the data there, or leave --data out."
        )
    samples: list[str | Batch] = []
    windows = _reads_windows(program)
    for file in files:
        if file.suffix not in READERS:
            raise CompilerError(
                doing, f"{file.suffix or file.name!r} is no known kind of data", "Known kinds: .txt, .jsonl, .npz."
            )
        read = _read_document if windows and file.suffix in DOCUMENTS else READERS[file.suffix]
        samples.extend(read(f"reading data {file}", file, program))
    documents = [sample for sample in samples if isinstance(sample, str)]
    if windows and documents:
        if len(documents) < len(samples):
            raise CompilerError(doing, "it holds text and arrays", "Give one or the other.")
        return _window_dataset(doing, path.name, documents, program, training_tokens, shipped=False)
    if len(samples) < 2:
        raise CompilerError(
            doing, f"it holds {len(samples)} samples", "At least two are needed: one to calibrate, one to score."
        )
    judged, rest = _spread(samples, SAMPLE_LIMIT)
    spare = _mixed(_spread(rest, TRAINING_SAMPLE_LIMIT)[0]) if training_tokens else None
    return _split(path.name, judged, spare, program, shipped=False)


def _spread(samples: Sequence[str | Batch], count: int) -> tuple[list[str | Batch], list[str | Batch]]:
    """`count` of the samples, evenly from all of them, and the others, both in order."""
    if len(samples) <= count:
        return list(samples), []
    taken = {index * len(samples) // count for index in range(count)}
    others = [one for index, one in enumerate(samples) if index not in taken]
    return [samples[index] for index in sorted(taken)], others


def _mixed(samples: Sequence[str | Batch]) -> list[str | Batch]:
    """In an order in which a batch takes its samples from all over."""
    count = -(-len(samples) // BATCH_SIZE)
    return [one for start in range(count) for one in samples[start::count]]


def _shipped(program: Program, seed: int, training_tokens: int) -> Dataset:
    if _reads_windows(program):
        name = "the prose shipped with Regraft"
        return _window_dataset("reading data", name, _shipped_prose(), program, training_tokens, shipped=True)
    if program.tokenizer is not None and any(spec.name == "input_ids" for spec in program.inputs):
        lines: list[str | Batch] = list(SHIPPED_SENTENCES.read_text(encoding="utf-8").splitlines())
        spare = _prose_sentences() if training_tokens else None
        return _split("128 sentences shipped with Regraft", lines, spare, program, shipped=True)
    batches = random_batches(program, seed)
    training = tuple(random_batches(program, seed + len(batches) + 1)) if training_tokens else ()
    parts = tuple(batches[::2]), tuple(batches[1::2])
    return Dataset("random inputs", *parts, True, _mask_index(program), training=training)


def _shipped_prose() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(SHIPPED_PROSE.glob("*.txt"))]


def _prose_sentences() -> list[str | Batch]:
    """The sentences of the shipped prose: more to train on than to judge by."""
    text = " ".join(" ".join(_shipped_prose()).split())
    return [sentence for sentence in re.split(r"(?<=[.!?]) ", text) if sentence]


def _reads_windows(program: Program) -> bool:
    """Whether text comes in windows of tokens: for a language model whose inputs follow from tokens alone."""
    names = {spec.name for spec in program.inputs}
    return program.tokenizer is not None and is_language_model(program) and names <= {TOKENS, MASK}


def _window_dataset(
    doing: str, name: str, documents: Sequence[str], program: Program, training_tokens: int, *, shipped: bool
) -> Dataset:
    found = token_windows(doing, documents, program, _token_range(program), training_tokens)
    dtypes = {spec.name: getattr(torch, spec.dtype) for spec in program.inputs}

    def batch(tokens: Tensor) -> Batch:
        given = {TOKENS: tokens, MASK: torch.ones_like(tokens)}
        return tuple(given[name].to(dtype) for name, dtype in dtypes.items())

    parts = (found.scoring, found.calibration, found.training)
    scoring, calibration, training = (tuple(map(batch, part)) for part in parts)
    told, mask = f"{name}, {found.length} tokens each", _mask_index(program)
    return Dataset(told, scoring, calibration, shipped, mask, WINDOW, training)


def _split(
    name: str, samples: Sequence[str | Batch], spare: Sequence[str | Batch] | None, program: Program, *, shipped: bool
) -> Dataset:
    """Samples by turns; `spare` ones are to train on (None: nothing is)."""
    calibration, training = list(samples[::2]), list(spare or ())
    if spare is not None and len(training) < LEAST_TRAINING_SAMPLES and len(calibration) > 1:
        training += [one for i, one in enumerate(calibration) if i % CALIBRATION_TURN]
        calibration = calibration[::CALIBRATION_TURN]
    parts = (_batches(part, program) for part in (samples[1::2], calibration, training))
    scoring_batches, calibration_batches, training_batches = parts
    mask = _mask_index(program)
    return Dataset(name, scoring_batches, calibration_batches, shipped, mask, training=training_batches)


def _batches(samples: Sequence[str | Batch], program: Program) -> tuple[Batch, ...]:
    texts = [sample for sample in samples if isinstance(sample, str)]
    ready = [sample for sample in samples if not isinstance(sample, str)]
    batches = []
    if texts:
        encode = _encoder(program)
        batches = [encode(texts[start : start + BATCH_SIZE]) for start in range(0, len(texts), BATCH_SIZE)]
    return tuple(batches + ready)


def _encoder(program: Program) -> Callable[[Sequence[str]], Batch]:
    """A function from texts to a padded batch in the order of the inputs, as the artifact will encode them."""
    from compiler.runtime.text import encode_batch, limited
    from compiler.tokenizer_folder import open_tokenizer

    assert program.tokenizer is not None
    tokenizer, record = open_tokenizer(program.tokenizer, _token_range(program))
    limit = min(LONGEST_TEXT_TOKENS, record.maximum_tokens or LONGEST_TEXT_TOKENS)
    limited(tokenizer, replace(record, maximum_tokens=limit))
    dtypes = {spec.name: spec.dtype for spec in program.inputs}
    return lambda texts: tuple(map(torch.from_numpy, encode_batch(tokenizer, texts, dtypes).values()))


def _token_range(program: Program) -> DimensionRange:
    """How many tokens the model takes at once."""
    tokens = next((spec.shape[-1] for spec in program.inputs if spec.name == "input_ids"), None)
    if tokens is None:
        return DimensionRange()
    return DimensionRange(tokens, tokens) if isinstance(tokens, int) else tokens.range


def _read_text(doing: str, path: Path, program: Program) -> list[str | Batch]:
    _require_tokenizer(doing, program)
    return [line.strip() for line in _text_of(doing, path).splitlines() if line.strip()]


def _read_document(doing: str, path: Path, program: Program) -> list[str | Batch]:
    return [_text_of(doing, path)]


def _read_jsonl(doing: str, path: Path, program: Program) -> list[str | Batch]:
    samples: list[str | Batch] = []
    for number, line in enumerate(_text_of(doing, path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise CompilerError(
                doing, f"line {number} is no JSON ({error.msg})", "Each line is one JSON object."
            ) from None
        samples.append(_json_sample(doing, number, value, program))
    return samples


def _json_sample(doing: str, number: int, value: Any, program: Program) -> str | Batch:
    if isinstance(value, str):
        value = {"text": value}
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        _require_tokenizer(doing, program)
        return str(value["text"])
    if isinstance(value, dict) and all(spec.name in value for spec in program.inputs):
        try:
            arrays = {
                spec.name: np.asarray(value[spec.name], dtype=_numpy_name(spec.dtype))[None] for spec in program.inputs
            }
        except (ValueError, TypeError) as error:
            raise CompilerError(doing, f"line {number}: {error}", "Give rectangular arrays of numbers.") from None
        return _checked(f"{doing}, line {number}", arrays, program)
    names = ", ".join(spec.name for spec in program.inputs)
    raise CompilerError(
        doing, f'line {number} has neither "text" nor the inputs {names}', 'Write {"text": "..."} on each line.'
    )


def _read_npz(doing: str, path: Path, program: Program) -> list[str | Batch]:
    arrays = read_tensors(path)
    missing = [spec.name for spec in program.inputs if spec.name not in arrays]
    if missing:
        wanted = ", ".join(spec.name for spec in program.inputs)
        hint = f"The file has {', '.join(arrays) or 'nothing'}; the model's inputs are {wanted}."
        raise CompilerError(doing, f"it has no array {missing[0]!r}", hint)
    whole = _checked(doing, arrays, program)
    count = min(len(tensor) for tensor in whole)
    return [tuple(tensor[i : i + 1] for tensor in whole) for i in range(count)]


DOCUMENTS = (".txt", ".md")
"""Files that are one document each where documents matter."""

READERS: dict[str, Callable[[str, Path, Any], list[str | Batch]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_jsonl,
    ".npz": _read_npz,
}


def _checked(doing: str, arrays: dict[str, np.ndarray[Any, Any]], program: Program) -> Batch:
    tensors = []
    for spec in program.inputs:
        array = arrays[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            not isinstance(want, int) or want == have or index == 0
            for index, (want, have) in enumerate(zip(spec.shape, array.shape, strict=True))
        )
        if not fits:
            raise CompilerError(doing, f"{spec.name} has shape {list(array.shape)}", f"The model takes {spec}.")
        if array.dtype.kind not in "fiub":
            raise CompilerError(doing, f"{spec.name} has dtype {array.dtype}", f"The model takes {spec}.")
        tensors.append(torch.from_numpy(np.ascontiguousarray(array)).to(getattr(torch, spec.dtype)))
    return tuple(tensors)


def _numpy_name(dtype: str) -> str:
    return "float32" if dtype == "bfloat16" else dtype


def _text_of(doing: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CompilerError(doing, f"it is no readable UTF-8 text ({error})", "Save it as UTF-8.") from None


def _require_tokenizer(doing: str, program: Program) -> None:
    if program.tokenizer is None:
        raise CompilerError(
            doing, "the model has no tokenizer to read text with", "Give arrays for its inputs as .npz."
        )


def _mask_index(program: Program) -> int | None:
    names: Iterable[str] = (spec.name for spec in program.inputs)
    return next((index for index, name in enumerate(names) if name == "attention_mask"), None)
