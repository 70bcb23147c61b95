"""The work on one text: its prompt read chunk by chunk, then a token at a time until it ends."""

from __future__ import annotations

import time

from compiler.runtime.generation.decoder import Decoder
from compiler.runtime.generation.prompt_lookup import PromptLookup
from compiler.runtime.generation.request import LENGTH, STOP, Request, Token
from compiler.runtime.generation.sampling import Logits, Sampler
from compiler.runtime.generation.state_buffers import Array
from compiler.runtime.generation.text_codec import TextCodec


class Continuation:
    """A request that has a row of the decoder. Which row is the engine's affair."""

    def __init__(self, request: Request, decoder: Decoder, codec: TextCodec, speculate: int = 0) -> None:
        self.request = request
        self._decoder = decoder
        self._sampler = Sampler(request.options, request.prompt)
        self._text = codec.stream(request.prompt, request.options.stop)
        self._read = 0
        self._speculate = speculate
        self._lookup = PromptLookup(request.prompt) if speculate else None
        wanted = request.options.max_tokens
        room = None if decoder.context_length is None else decoder.context_length - len(request.prompt)
        self._most = min((limit for limit in (wanted, room) if limit is not None), default=None)

    def read(self, row: int, chunk: int) -> Array | None:
        """Read the next `chunk` tokens of the prompt: None, or with the last of them its logits [vocabulary]."""
        prompt = self.request.prompt
        logits = self._decoder.extend(row, prompt[self._read : self._read + chunk])
        self._read += chunk
        if self._read < len(prompt):
            return None
        if len(prompt) >= chunk:
            self._decoder.return_free_memory()
        last: Array = logits[-1]
        return last

    def take(self, logits: Logits) -> bool:
        """Choose the next token, hand it over, and say whether the text has ended with it."""
        request = self.request
        token = self._sampler.next(logits)
        if not request.tokens:
            request.timing.first_token = time.perf_counter()
        request.tokens.append(token)
        if self._lookup is not None:
            self._lookup.add(token)
        reason = text = None
        if token in self._decoder.generation.end_tokens:
            reason, text = STOP, self._text.end()
        else:
            text = self._text.add(token)
            if self._text.stopped:
                reason = STOP
            elif len(request.tokens) == self._most:
                reason, text = LENGTH, text + self._text.end()
        request.deliver(Token(token, text, reason))
        return reason is not None

    def end(self, reason: str) -> None:
        """End it without a token."""
        self.request.deliver(Token(None, "", reason))

    def draft_and_verify(self, row: int) -> bool | None:
        """Draft tokens from the text, give them to the model in one call, and take those that it would have chosen.

        Whether the text has ended; None when there was nothing to draft. Exact for any sampling: every token is chosen
        from the logits that the tokens before it give.
        """
        drafts = self._drafts()
        if not drafts:
            return None
        before = self._decoder.lengths[row]
        logits = self._decoder.extend(row, [self.request.tokens[-1], *drafts], kept=len(drafts) + 1)
        for count, scores in enumerate(logits, 1):
            ended = self.take(scores)
            if ended or count > len(drafts) or self.request.tokens[-1] != drafts[count - 1]:
                break
        self._decoder.take_back(row, before + count)
        return ended

    def _drafts(self) -> list[int]:
        if self._lookup is None:
            return []
        left = self._speculate if self._most is None else self._most - len(self.request.tokens) - 1
        return self._lookup.draft(min(self._speculate, left))
