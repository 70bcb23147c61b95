"""A decoder artifact in ONNX Runtime: tokens in, logits out, states kept between the calls in shared memory.

The texts of a decoder stand in rows. A prompt is read alone, in chunks, into its row; then the first rows advance
together by one token a call. Inputs, outputs and states stay bound to the same memory from call to call: a step writes
its tokens, one number a row of the mask, and runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compiler.errors import CompilerError
from compiler.runtime.engines import first_line, open_engine
from compiler.runtime.free_memory import return_free_memory
from compiler.runtime.generation.state_buffers import Array, StateBuffers
from compiler.runtime.integrity import require_files
from compiler.runtime.manifest import GenerationRecord, Manifest, read_manifest

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding

TOKENS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "logit_positions", "logits"
MASK_STEP = 64
"""The mask widens by this many tokens at a time, so that most steps bind nothing."""

CHUNK = 128
"""The most tokens of a prompt in one call. Attention scores all tokens of a chunk against each other and then drops
what lies ahead: on one thread 2,048 tokens of SmolLM2-135M take 1.16 times the processor's time in chunks of 512, and
1.25 in those of 32; on two threads chunks of 128, 256 and 512 are within 5 %."""


class Decoder:
    """An open artifact and the states of `rows` texts; `lengths` says how many tokens each has been given.

    Not for several threads at once.
    """

    def __init__(self, manifest: Manifest, session: InferenceSession, rows: int, folder: Path | None = None) -> None:
        self.manifest = manifest
        self.generation = _generation(manifest)
        self.rows = rows
        self.lengths = [0] * rows
        self.context_length = self.generation.context_length
        self._session = session
        self._folder = folder
        self._buffers = StateBuffers(manifest, rows, self.context_length)
        self._logits = np.empty([rows, 1, self.generation.vocabulary_size], np.float32)
        self._calls: dict[tuple[int, int, int, int], _Call] = {}

    @classmethod
    def open(cls, folder: Path, rows: int = 1, threads: int | None = None) -> Decoder:
        """Open the artifact in `folder` for so many texts at once.

        Raises CompilerError when it is damaged, this machine cannot run it, or it does not generate text.
        """
        from compiler.runtime.onnxruntime_engine import OnnxRuntimeEngine

        manifest = read_manifest(folder)
        _generation(manifest)
        require_files(folder, manifest)
        engine = open_engine(folder, manifest, threads)
        if not isinstance(engine, OnnxRuntimeEngine):
            problem = f"it was compiled for the {manifest.backend} backend"
            raise CompilerError(f"generating with {folder}", problem, "Compile with --backend onnx_runtime.")
        decoder = cls(manifest, engine.session, rows, folder)
        decoder.return_free_memory()
        return decoder

    @property
    def recurrent(self) -> bool:
        """Whether some state is of fixed size: then tokens that were given cannot be taken back."""
        return self._buffers.recurrent

    @property
    def state_bytes(self) -> int:
        """What the states take at their present capacity."""
        return self._buffers.bytes

    def prefill(self, row: int, tokens: Sequence[int]) -> Array:
        """Read a prompt into a row, after what is there, in chunks: the logits [vocabulary] of its last token.

        They are valid until the next call. Raises CompilerError when it does not fit into the context.
        """
        logits: Array | None = None
        for start in range(0, len(tokens), CHUNK):
            logits = self.extend(row, tokens[start : start + CHUNK])
        if logits is None:
            raise CompilerError("reading the prompt", "it has no token", "Give a text.")
        if len(tokens) >= CHUNK:
            self.return_free_memory()
        return np.asarray(logits[-1])

    def extend(self, row: int, tokens: Sequence[int], kept: int = 1) -> Array:
        """Read tokens into one row, in one call: logits [kept, vocabulary] of the last `kept` of them.

        They are valid until the next call. Raises CompilerError when they do not fit into the context.
        """
        logits = self._run(row, np.array([tokens], np.int64), kept)
        return np.asarray(logits[0])

    def decode(self, tokens: Sequence[int]) -> Array:
        """Give the first rows one token each, in one call: logits [rows, vocabulary], valid until the next call.

        Raises CompilerError when a row is at the end of its context.
        """
        logits = self._run(0, np.array(tokens, np.int64)[:, None], 1)
        return np.asarray(logits[:, 0])

    def return_free_memory(self) -> None:
        """Return what opening the artifact or reading a long prompt took, and decoding does not need."""
        return_free_memory(self._folder)

    def take_back(self, row: int, length: int) -> None:
        """Forget the tokens of a row from `length` on. Not for recurrent decoders."""
        assert not self.recurrent
        self.lengths[row] = length

    def clear(self, row: int) -> None:
        """Forget the text of a row."""
        self._buffers.clear(row)
        self.lengths[row] = 0

    def move(self, source: int, target: int) -> None:
        """Give a row's text to another row; the source is empty after it."""
        self._buffers.move(source, target, self.lengths[source])
        self.lengths[target] = self.lengths[source]
        self.clear(source)

    def _run(self, first: int, tokens: Array, kept: int) -> Array:
        count, new = tokens.shape
        rows = slice(first, first + count)
        totals = [length + new for length in self.lengths[rows]]
        longest = max(totals)
        if self.context_length is not None and longest > self.context_length:
            problem = f"{longest} tokens are more than the {self.context_length} that it can see"
            raise CompilerError(f"generating with {self.manifest.name}", problem, "Give a shorter text.")
        if not self._buffers.fits(longest):
            self._calls.clear()
            self._buffers.grow(longest, self.lengths)
        call = self._call(first, count, new, kept)
        call.set_mask(totals, self._buffers.capacity)
        call.tokens[:] = tokens
        try:
            self._session.run_with_iobinding(call.binding)
        except Exception as error:
            hint = "If a shorter text works, memory ran out; otherwise try: compile verify"
            raise CompilerError(f"generating with {self.manifest.name}", first_line(error), hint) from error
        self.lengths[rows] = totals
        return call.read_logits()

    def _call(self, first: int, count: int, new: int, kept: int) -> _Call:
        key = (first, count, new, kept)
        call = self._calls.get(key)
        if call is None:
            if len(self._calls) >= 4 * self.rows:
                self._calls.clear()
            call = self._calls[key] = self._bound(first, count, new, kept)
        return call

    def _bound(self, first: int, count: int, new: int, kept: int) -> _Call:
        given = {TOKENS: np.zeros([count, new], np.int64), POSITIONS: np.arange(new - kept, new)}
        logits = self._logits[:count] if kept == 1 else None
        names = {spec.name for spec in self.manifest.inputs}
        call = _Call(self._session.io_binding(), given[TOKENS], logits, MASK in names)
        for name in given.keys() & names:
            call.bind_input(name, given[name])
        for past, present, array in self._buffers.arrays(slice(first, first + count)):
            call.bind_input(past, array)
            call.bind_output(present, array)
        if logits is not None:
            call.bind_output(LOGITS, logits)
        else:  # files that open in onnxruntime-genai state one row, which bound memory may not exceed
            call.binding.bind_output(LOGITS)
        return call


class _Call:
    """One shape of call, bound: `tokens` [rows, new] and the mask [rows, width] are written before it runs."""

    def __init__(self, binding: IOBinding, tokens: Array, logits: Array | None, masked: bool) -> None:
        self.binding = binding
        self.tokens = tokens
        self.logits = logits
        self._masked = masked
        self._mask: Array | None = None
        self._ones = [0] * len(tokens)

    def set_mask(self, totals: Sequence[int], capacity: int) -> None:
        """Ones for so many tokens of every row, then zeros."""
        if not self._masked:
            return
        longest = max(totals)
        mask = self._mask
        if mask is None or mask.shape[1] < longest:
            width = min(-(-longest // MASK_STEP) * MASK_STEP, capacity)
            mask = self._mask = np.zeros([len(totals), width], np.int64)
            self._ones = [0] * len(totals)
            self.bind_input(MASK, mask)
        for row, (total, ones) in enumerate(zip(totals, self._ones, strict=True)):
            mask[row, ones:total] = 1
            mask[row, total:ones] = 0
            self._ones[row] = total

    def read_logits(self) -> Array:
        """The logits of the call that ran last."""
        if self.logits is not None:
            return self.logits
        logits = np.asarray(self.binding.get_outputs()[-1].numpy())
        self.binding.bind_output(LOGITS)  # or the next run would take what this one made for bound memory
        return logits

    def bind_input(self, name: str, array: Array) -> None:
        """Read an input from this memory."""
        from onnxruntime import OrtValue

        self.binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))

    def bind_output(self, name: str, array: Array) -> None:
        """Write an output into this memory."""
        from onnxruntime import OrtValue

        self.binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(array))


def _generation(manifest: Manifest) -> GenerationRecord:
    if manifest.generation is None:
        problem = (
            "it reads whole sequences and keeps no states" if manifest.role == "causal-lm" else "it writes no text"
        )
        hint = "Compile a causal language model with --passes make-incremental."
        raise CompilerError(f"generating with {manifest.name}", problem, hint)
    return manifest.generation
