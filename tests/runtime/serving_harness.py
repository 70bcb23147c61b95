"""A server of the small decoder in a thread, what it should say, and requests that no client library sends."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from openai import OpenAI
from small_decoder import SmallDecoder

from compiler.runtime.generation.decoder import Decoder
from compiler.runtime.generation.engine import Engine
from compiler.runtime.generation.state_buffers import Array
from compiler.runtime.generation.text_codec import TextCodec
from compiler.runtime.serving.server import GenerationServer, ServeOptions

MODEL = "small"
HELLO = [{"role": "user", "content": "hello"}]


class SlowDecoder(Decoder):
    """Takes its time for each step, so that there is time to interrupt it."""

    seconds = 0.02

    def decode(self, tokens: Any) -> Array:
        """One step."""
        time.sleep(self.seconds)
        return super().decode(tokens)


@dataclass
class RunningServer:
    """A server that takes requests."""

    engine: Engine
    server: GenerationServer
    thread: threading.Thread

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.server.url)
        return str(parts.hostname), int(parts.port or 0)

    def client(self, **options: Any) -> OpenAI:
        """The official client, without its own retries."""
        return OpenAI(base_url=self.server.url, api_key=options.pop("api_key", "none"), max_retries=0, **options)

    def request(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and document of one raw request."""
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        names = {name.lower(): value for name, value in response.getheaders()}
        return response.status, names, json.loads(text) if text else None

    def post(self, document: Any, path: str = "/v1/completions") -> tuple[int, dict[str, str], Any]:
        """Status, headers and document of a JSON request."""
        return self.request("POST", path, json.dumps(document))

    def open_socket(self, document: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
        """A connection that has sent a request and read nothing."""
        body = json.dumps(document).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection = socket.create_connection(self.address, timeout=20)
        connection.sendall(head.encode() + body)
        return connection

    def wait_until(self, holds: Callable[[], bool], seconds: float = 10.0) -> float:
        """How long it took until something holds; fails when it takes too long."""
        started = time.perf_counter()
        while not holds():
            assert time.perf_counter() - started < seconds
            time.sleep(0.002)
        return time.perf_counter() - started


@contextmanager
def serving(
    folder: Path, *, decoder: type[Decoder] = Decoder, slots: int = 4, **options: Any
) -> Iterator[RunningServer]:
    """A server in a thread of this process, stopped at the end."""
    opened = decoder.open(folder, slots, 1)
    settings = ServeOptions(port=0, slots=slots, **{"quiet": True, "grace_seconds": 0.2, **options})
    with Engine(opened, TextCodec(folder, opened.manifest)) as engine:
        server = GenerationServer(engine, settings)
        thread = threading.Thread(target=server.run)
        thread.start()
        running = RunningServer(engine, server, thread)
        try:
            yield running
        finally:
            server.stop()
            thread.join(20)
            assert not thread.is_alive()


class Expected:
    """What the small decoder says when it is computed by the formulas."""

    def __init__(self, codec: TextCodec) -> None:
        self.decoder = SmallDecoder()
        self.codec = codec

    def completion(self, prompt: str, tokens: int) -> str:
        """The greedy continuation of a plain prompt."""
        return self._text(self.codec.encode(prompt), tokens)

    def chat(self, messages: list[dict[str, str]], tokens: int) -> str:
        """The greedy answer to messages."""
        return self._text(self.codec.render_chat(messages), tokens)

    def _text(self, prompt: list[int], tokens: int) -> str:
        ids = self.decoder.greedy(prompt, tokens, end=())
        scores = np.sort(self.decoder.logits([*prompt, *ids])[len(prompt) - 1 : -1])
        assert (scores[:, -1] - scores[:, -2]).min() > 1e-3, "a choice so close that rounding decides it"
        return self.codec.decode(ids)
