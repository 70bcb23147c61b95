"""Clients of a server under load: streams that are read to their end and compared, streams that are killed on the way,
and requests that must be refused.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

KILLED = 0.15
"""Share of the streams whose client dies on the way."""

REFUSED_EVERY_SECONDS = 0.25
MOST_BODY_BYTES = 2**20
"""What the server is started with; bodies over it must be refused."""

LONGEST_KILLED_READ_SECONDS = 6.0


@dataclass(frozen=True)
class Prompt:
    """One request, and what it is answered when it is alone."""

    path: str
    body: dict[str, Any]

    def encoded(self) -> bytes:
        """The request for a stream, with the count of tokens at its end."""
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(self.body | stream).encode()


@dataclass
class Stream:
    """What came of one stream that was read to its end."""

    prompt: int
    text: str = ""
    finish_reason: str | None = None
    completion_tokens: int = 0
    done: bool = False
    error: str = ""
    first_token_seconds: float = 0.0
    seconds: float = 0.0


@dataclass
class Tally:
    """Everything that the clients saw."""

    streams: list[Stream] = field(default_factory=list)
    killed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrongly_answered: list[str] = field(default_factory=list)


async def read_stream(url: str, prompt: Prompt, number: int) -> Stream:
    """One stream, to its end."""
    stream, started = Stream(number), time.perf_counter()
    try:
        reader, writer = await _sent(url, prompt)
        try:
            await _read_events(reader, stream, started)
        finally:
            writer.close()
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        stream.error = f"{type(error).__name__}: {error}"
    stream.seconds = time.perf_counter() - started
    return stream


async def load(url: str, prompts: list[Prompt], clients: int, seconds: float, seed: int = 0) -> Tally:
    """`clients` that stream at the same time for so long, and one more whose requests must be refused."""
    tally, ends = Tally(), time.monotonic() + seconds
    workers = [_client(url, prompts, tally, ends, random.Random(seed + index)) for index in range(clients)]
    await asyncio.gather(*workers, _vandal(url, tally, ends, random.Random(seed - 1)))
    return tally


async def _client(url: str, prompts: list[Prompt], tally: Tally, ends: float, chance: random.Random) -> None:
    while time.monotonic() < ends:
        number = chance.randrange(len(prompts))
        if chance.random() < KILLED:
            await _killed(url, prompts[number], chance)
            tally.killed += 1
        else:
            tally.streams.append(await read_stream(url, prompts[number], number))


async def _killed(url: str, prompt: Prompt, chance: random.Random) -> None:
    """A client that dies: its connection is reset, or closed, while it waits or reads."""
    _, writer = await _sent(url, prompt)
    await asyncio.sleep(chance.random() ** 2 * LONGEST_KILLED_READ_SECONDS)
    if chance.random() < 0.5:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _vandal(url: str, tally: Tally, ends: float, chance: random.Random) -> None:
    while time.monotonic() < ends:
        name, head, body, expected = chance.choice(_bad_requests(chance))
        try:
            status = await _status(url, head, body)
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            status = f"{type(error).__name__}: {error}"
        tally.refused[f"{name}: {status}"] += 1
        if status != expected:
            tally.wrongly_answered.append(f"{name}: {status}, not {expected}")
        await asyncio.sleep(REFUSED_EVERY_SECONDS)


def _bad_requests(chance: random.Random) -> list[tuple[str, str, bytes, str]]:
    """Name, request line and headers, body, and the status that must come."""
    completions = "POST /v1/completions HTTP/1.1"
    whole = {"model": "MODEL", "prompt": "a", "max_tokens": 1}
    noise = bytes(chance.randrange(256) for _ in range(200))
    return [
        ("no JSON", completions, noise, "400"),
        ("cut JSON", completions, json.dumps(whole).encode()[: chance.randrange(1, 40)], "400"),
        ("wrong type", completions, json.dumps(whole | {"max_tokens": "many"}).encode(), "400"),
        ("unknown model", completions, json.dumps(whole | {"model": "another"}).encode(), "404"),
        ("unknown path", "POST /v1/images HTTP/1.1", b"{}", "404"),
        ("wrong method", "GET /v1/completions HTTP/1.1", b"", "405"),
        ("oversized", completions, b" " * chance.randrange(MOST_BODY_BYTES + 1, 8 * MOST_BODY_BYTES), "413"),
        ("foreign host", "GET /v1/models HTTP/1.1\r\nX-Host: evil", b"", "403"),
    ]


async def _status(url: str, head: str, body: bytes) -> str:
    reader, writer = await asyncio.open_connection(*_address(url))
    try:
        host = "evil.example" if "X-Host" in head else "localhost"
        lines = f"{head}\r\nHost: {host}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(lines.encode() + body)
        await writer.drain()
        return (await reader.readline()).split()[1].decode()
    finally:
        writer.close()


async def _sent(url: str, prompt: Prompt) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*_address(url))
    body = prompt.encoded()
    head = f"POST {prompt.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


async def _read_events(reader: asyncio.StreamReader, stream: Stream, started: float) -> None:
    status = (await reader.readline()).split()[1].decode()
    while (await reader.readline()).strip():
        pass
    if status != "200":
        raise ValueError(f"status {status}")
    async for line in reader:
        if not line.startswith(b"data: "):
            continue  # the sizes of chunks, and empty lines
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            stream.done = True
            return
        _take(json.loads(data), stream, started)


def _take(chunk: dict[str, Any], stream: Stream, started: float) -> None:
    if "error" in chunk:
        raise ValueError(chunk["error"]["message"])
    if chunk.get("usage"):
        stream.completion_tokens = chunk["usage"]["completion_tokens"]
    for choice in chunk["choices"]:
        piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
        if piece and not stream.text:
            stream.first_token_seconds = time.perf_counter() - started
        stream.text += piece
        stream.finish_reason = choice["finish_reason"] or stream.finish_reason


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return str(parts.hostname), int(parts.port or 80)
