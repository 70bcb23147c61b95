"""Many texts at once on one decoder: prompts are read in chunks as places become free, all texts advance together.

    with Engine.open(folder, slots=4) as engine:
        request = engine.submit(engine.encode("Once upon a time"), SamplingOptions(max_tokens=64))
        for token in request:
            print(token.text, end="")

One thread of the engine does all the work; `submit`, `cancel` and `close` may be called from any. Rows of the decoder
are kept without gaps: the running texts stand first, the one whose prompt is being read right after them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from compiler.errors import CompilerError
from compiler.runtime.generation.chat_template import Message
from compiler.runtime.generation.continuation import Continuation
from compiler.runtime.generation.decoder import CHUNK, Decoder
from compiler.runtime.generation.request import CANCELLED, Request, Token
from compiler.runtime.generation.sampling import SamplingOptions
from compiler.runtime.generation.text_codec import TextCodec

LONGEST_DRAFT = 64


@dataclass
class Totals:
    """What an engine has done: tokens of all texts, and the seconds that they took together."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    @property
    def prefill_speed(self) -> float | None:
        """Tokens a second; None where there were none."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_tokens else None

    @property
    def decode_speed(self) -> float | None:
        """Tokens a second, of all texts that ran side by side; None where there were none."""
        return self.decode_tokens / self.decode_seconds if self.decode_tokens else None


class Engine:
    """An open artifact that continues up to `slots` texts at a time; further ones wait in turn."""

    def __init__(self, decoder: Decoder, codec: TextCodec, speculate: int = 0) -> None:
        """`speculate` is how many tokens are drafted from the text itself while one greedy text runs alone."""
        if not 0 <= speculate <= LONGEST_DRAFT:
            problem = f"{speculate} tokens cannot be drafted at a time"
            raise CompilerError("starting speculation", problem, f"Give 0 (none) to {LONGEST_DRAFT}.")
        if speculate and decoder.recurrent:
            problem = "a state of fixed size cannot take tokens back that were drafted wrongly"
            raise CompilerError("starting speculation", problem, "Leave --speculate out for this model.")
        self.name = decoder.manifest.name
        self.context_length = decoder.context_length
        self.slots = decoder.rows
        self.codec = codec
        self.totals = Totals()
        self._decoder = decoder
        self._speculate = speculate
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._running: list[Continuation] = []
        self._reading: Continuation | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, folder: Path, slots: int = 1, threads: int | None = None, speculate: int = 0) -> Engine:
        """Open the artifact in `folder`.

        Raises CompilerError when it is damaged, does not generate text, or this machine cannot run it.
        """
        decoder = Decoder.open(folder, slots, threads)
        return cls(decoder, TextCodec(folder, decoder.manifest), speculate)

    @property
    def active(self) -> int:
        """How many texts have a place, those whose prompts are being read included."""
        return len(self._running) + (self._reading is not None)

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._waiting)

    def encode(self, text: str) -> list[int]:
        """The token ids of a plain prompt."""
        return self.codec.encode(text)

    def render_chat(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of the prompt that the answer to `messages` follows. Raises CompilerError."""
        return self.codec.render_chat(messages)

    def submit(
        self,
        prompt: Sequence[int],
        options: SamplingOptions | None = None,
        listener: Callable[[Token | CompilerError], None] | None = None,
    ) -> Request:
        """Ask for a continuation of the prompt's token ids; returns at once.

        Raises CompilerError when the prompt is empty, has ids that are no tokens, leaves no room in the context, or
        the engine is closed.
        """
        self._check(prompt)
        request = Request(prompt, options or SamplingOptions(), listener)
        with self._changed:
            if self._closing:
                raise CompilerError("generating", "the engine is closed", "Open it again.")
            self._waiting.append(request)
            self._changed.notify()
        return request

    def close(self, grace_seconds: float = 0.0) -> None:
        """Take no more, let what was submitted run for so many seconds, cancel the rest and stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(grace_seconds)
        for request in self._requests():
            request.cancel()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, prompt: Sequence[int]) -> None:
        doing, size = "reading the prompt", self._decoder.generation.vocabulary_size
        if not prompt:
            raise CompilerError(doing, "it is empty", "Give at least one character.")
        wrong = next((token for token in prompt if not 0 <= token < size), None)
        if wrong is not None:
            raise CompilerError(doing, f"{wrong} is no token", f"Token ids are 0 to {size - 1}.")
        if self.context_length is not None and len(prompt) >= self.context_length:
            problem = f"it has {len(prompt)} tokens and the context has {self.context_length}"
            raise CompilerError(doing, problem, "Shorten it: the answer needs room too.")

    def _requests(self) -> list[Request]:
        with self._changed:
            running = [*self._running, *([] if self._reading is None else [self._reading])]
            return [*(continuation.request for continuation in running), *self._waiting]

    def _work(self) -> None:
        """The thread: one chunk of a prompt and one token of every running text, again and again."""
        while self._next_work():
            try:
                self._read_some()
                self._advance()
            except CompilerError as error:
                self._fail(error)
            except Exception as error:  # anything else would leave those who wait waiting for ever
                failure = CompilerError("generating", f"{type(error).__name__}: {error}", "This is a bug in regraft.")
                failure.__cause__ = error
                self._fail(failure)

    def _next_work(self) -> bool:
        """Wait for something to do, drop what was cancelled and give a free row away. False: closed, all done."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if self._reading is None and self._waiting and len(self._running) < self.slots:
                    request = self._waiting.popleft()
                    self._reading = Continuation(request, self._decoder, self.codec, self._speculate)
                    self._decoder.clear(len(self._running))
                if self._running or self._reading:
                    return True
                if self._closing:
                    return False
                self._changed.wait()

    def _drop_cancelled(self) -> None:
        for request in [request for request in self._waiting if request.cancelled]:
            self._waiting.remove(request)
            request.deliver(Token(None, "", CANCELLED))
        for row in reversed(range(len(self._running))):
            if self._running[row].request.cancelled:
                self._running[row].end(CANCELLED)
                self._release(row)
        if self._reading is not None and self._reading.request.cancelled:
            self._reading.end(CANCELLED)
            self._reading = None

    def _release(self, row: int) -> None:
        """Close the gap that an ended text leaves: the last running text takes its row, the one being read follows."""
        last = len(self._running) - 1
        if row != last:
            self._decoder.move(last, row)
            self._running[row] = self._running[last]
        else:
            self._decoder.clear(last)
        self._running.pop()
        if self._reading is not None:
            self._decoder.move(last + 1, last)

    def _read_some(self) -> None:
        """Read a chunk of the prompt in turn; with its last one the text joins those that run."""
        reading = self._reading
        if reading is None:
            return
        row = len(self._running)
        started = time.perf_counter()
        logits = reading.read(row, CHUNK)
        self.totals.prefill_seconds += time.perf_counter() - started
        if logits is None:
            return
        self.totals.prefill_tokens += len(reading.request.prompt)
        self._reading = None
        self._running.append(reading)
        if reading.take(logits):
            self._release(row)

    def _advance(self) -> None:
        """One token for every running text, or several for one that drafts."""
        running = self._running
        if not running:
            return
        started, before = time.perf_counter(), sum(len(continuation.request.tokens) for continuation in running)
        drafted = running[0].draft_and_verify(0) if len(running) == 1 else None
        if drafted is not None:
            ended = [drafted]
        else:
            logits = self._decoder.decode([continuation.request.tokens[-1] for continuation in running])
            ended = [continuation.take(scores) for continuation, scores in zip(running, logits, strict=True)]
        self.totals.decode_seconds += time.perf_counter() - started
        self.totals.decode_tokens += sum(len(continuation.request.tokens) for continuation in running) - before
        for row in reversed(range(len(ended))):
            if ended[row]:
                self._release(row)

    def _fail(self, error: CompilerError) -> None:
        with self._changed:
            running = [*self._running, *([] if self._reading is None else [self._reading])]
            self._running, self._reading = [], None
        for continuation in running:
            continuation.request.fail(error)
