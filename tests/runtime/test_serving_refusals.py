"""What `compile serve` refuses: requests that are malformed, too large, too many, or not the user's own."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving_harness import HELLO, MODEL, RunningServer, SlowDecoder, serving
from small_decoder import write_decoder

MOST_BYTES = 20_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("refusals")
    write_decoder(base / "small", base / "model", end_tokens=())
    return base / "small"


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[RunningServer]:
    with serving(folder, slots=1, max_body_bytes=MOST_BYTES) as server:
        yield server


COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": "a", "max_tokens": 2}
CHAT: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 2}

WRONG_COMPLETIONS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"prompt": None}, "prompt", "prompt: it is missing"),
    ({"prompt": 3}, "prompt", "expected a string, found 3"),
    ({"prompt": [1, "a"]}, "prompt", "2 prompts are given"),
    ({"prompt": [1, 1.5]}, "prompt", "expected an integer, found 1.5"),
    ({"prompt": [1, 64]}, None, "64 is no token"),
    ({"prompt": [-1]}, None, "-1 is no token"),
    ({"prompt": []}, None, "it is empty"),
    ({"prompt": ["a", "b"]}, "prompt", "2 prompts are given"),
    ({"prompt": "\ud800"}, None, "half a character"),
    ({"prompt": "a" * 600}, None, "context of 600"),
    ({"prompt": "a", "max_tokens": 600}, None, r"max_tokens \(600\) are too many"),
    ({"model": None}, "model", "model: it is missing"),
    ({"model": 3}, "model", "expected a string"),
    ({"max_tokens": 0}, "max_tokens", "max_tokens is 0"),
    ({"max_tokens": 1.5}, "max_tokens", "expected an integer"),
    ({"max_tokens": True}, "max_tokens", "expected an integer, found True"),
    ({"temperature": "hot"}, "temperature", "expected a number, found 'hot'"),
    ({"temperature": -1}, "temperature", "temperature is -1"),
    ({"top_p": 0}, "top_p", "top_p is 0"),
    ({"top_p": 1.1}, "top_p", "top_p is 1.1"),
    ({"top_k": 0}, "top_k", "top_k is 0"),
    ({"frequency_penalty": 3}, "frequency_penalty", "from -2 to 2"),
    ({"presence_penalty": "x"}, "presence_penalty", "expected a number"),
    ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
    ({"seed": "x"}, "seed", "expected an integer"),
    ({"stop": 3}, "stop", "expected a string"),
    ({"stop": [""]}, "stop", "at least one character"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "more than 4 strings"),
    ({"stop": ["\udc00"]}, None, "half a character"),
    ({"stream": 1}, "stream", "expected true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only a stream has options"),
    ({"stream": True, "stream_options": {"include_use": True}}, "stream_options.include_use", "no such entry"),
    ({"n": 2}, "n", "n: only 1 is supported"),
    ({"n": True}, "n", "only 1"),
    ({"best_of": 3}, "best_of", "only 1"),
    ({"echo": True}, "echo", "only false"),
    ({"logprobs": 5}, "logprobs", "only false"),
    ({"logit_bias": {"5": 100}}, "logit_bias", "only {}"),
    ({"suffix": "end"}, "suffix", "suffix"),
    ({"temprature": 1}, "temprature", "Did you mean 'temperature'?"),
    ({"messages": []}, "messages", "no such parameter"),
]

WRONG_CHATS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": None}, "messages", "messages: it is missing"),
    ({"messages": []}, "messages", "there is none"),
    ({"messages": "hello"}, "messages", "expected a list"),
    ({"messages": ["hello"]}, "messages[0]", "expected an object"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "it is missing"),
    ({"messages": [{"content": "a"}]}, "messages[0].role", "it is missing"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", "'robot' is none of system"),
    ({"messages": [*HELLO, {"role": "tool", "content": "a"}]}, "messages[1].role", "'tool' is none of"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "expected a string"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "half a character"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0]",
        "reads text alone",
    ),
    ({"messages": [{"role": "user", "content": "a" * 600}]}, None, "context of 600"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages[0].tool_calls", "no such"),
    ({"max_completion_tokens": 2}, "max_tokens", "two names of one limit"),
    ({"tools": [{"type": "function"}]}, "tools", "only []"),
    ({"response_format": {"type": "json_object"}}, "response_format", "only"),
    ({"prompt": "a"}, "prompt", "no such parameter"),
]


@pytest.mark.parametrize(
    ("path", "document", "param", "words"),
    [
        *(("/v1/completions", {**COMPLETION, **change}, param, words) for change, param, words in WRONG_COMPLETIONS),
        *(("/v1/chat/completions", {**CHAT, **change}, param, words) for change, param, words in WRONG_CHATS),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    running: RunningServer, path: str, document: dict[str, Any], param: str | None, words: str
) -> None:
    status, _, answer = running.post(document, path)
    assert status == 400, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error"
    assert words.replace("\\", "") in answer["error"]["message"]


def test_entries_that_change_nothing_are_taken(running: RunningServer) -> None:
    neutral = {"n": 1, "logprobs": False, "user": "me", "metadata": {"a": "b"}, "tools": [], "seed": None, "stop": None}
    assert running.post({**CHAT, **neutral}, "/v1/chat/completions")[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b"[]", b"null", b"3", b'"text"', b"\xff\xfe", b'{"model": NaN}', b'{"a": 1, "a": 2}',
        b"[" * 15_000, b'{"model": "small", "prompt": "a", "seed": ' + b"9" * 15_000 + b"}",
        b'{"model": "small", "prompt": "a", "temperature": 1e999}', b'{"model": "small", "prompt": "\\ud83d"}',
        b'{"model": "small", "prompt": "a", "temperature": ' + b"9" * 400 + b"}",
        b'{"model": "small", "prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"\\ud83d": 1}', b'{"model": "\\ud83d", "prompt": "a"}',
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(running: RunningServer, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        status, _, answer = running.request("POST", path, body)
        assert status == 400
        assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404), ("GET", "/v2/models", 404), ("POST", "/v1/embeddings", 404), ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/other", 404), ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models/small", 405),
        ("PUT", "/v1/completions", 405), ("OPTIONS", "/v1/completions", 405), ("POST", "/health", 405),
        ("GET", "/v1/../../etc/passwd", 404), ("GET", "/%00%0a%1b[31m", 404),
    ],
)  # fmt: skip
def test_wrong_paths_and_methods(running: RunningServer, method: str, path: str, status: int) -> None:
    found, headers, answer = running.request(method, path)
    assert found == status
    assert answer["error"]["type"] == "invalid_request_error"
    assert ("allow" in headers) == (status == 405)


def test_an_unknown_model_is_404(running: RunningServer) -> None:
    status, _, answer = running.post({**COMPLETION, "model": "gpt-4"})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")


def test_another_content_type_is_415(running: RunningServer) -> None:
    """What a web page can send elsewhere without asking first is not read at all."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert running.request("POST", "/v1/completions", json.dumps(COMPLETION), {"Content-Type": kind})[0] == 415
    kind = "application/json; charset=utf-8"
    assert running.request("POST", "/v1/completions", json.dumps(COMPLETION), {"Content-Type": kind})[0] == 200


class TestTooLarge:
    """Bodies over the limit."""

    def test_by_its_length(self, running: RunningServer) -> None:
        for size in (MOST_BYTES + 1, 50 * MOST_BYTES, 2_000_000):
            status, headers, answer = running.request("POST", "/v1/completions", b" " * size)
            assert (status, answer["error"]["code"]) == (413, "body_too_large")
            assert headers["connection"] == "close"
        assert running.request("POST", "/v1/completions", json.dumps(COMPLETION).ljust(MOST_BYTES))[0] == 200

    def test_by_its_stated_length_before_it_is_sent(self, running: RunningServer) -> None:
        with socket.create_connection(running.address, timeout=20) as connection:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n"
            connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == 413

    def test_in_chunks_without_a_length(self, running: RunningServer) -> None:
        connection = http.client.HTTPConnection(*running.address, timeout=20)
        connection.request("POST", "/v1/completions", iter([b" " * 1000] * 30), encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()

    def test_a_body_that_never_ends_in_time_is_408(
        self, running: RunningServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("compiler.runtime.serving.request_body.BODY_SECONDS", 0.1)
        with socket.create_connection(running.address, timeout=20) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == 408


def test_one_too_many_is_429_and_may_try_again(folder: Path) -> None:
    with serving(folder, decoder=SlowDecoder, slots=1, max_waiting=2) as server, server.client() as client:
        held = [server.open_socket({**COMPLETION, "max_tokens": 500, "stream": True}) for _ in range(3)]
        server.wait_until(lambda: server.request("GET", "/health")[2]["waiting"] == 2)
        status, headers, answer = server.post(COMPLETION)
        assert (status, headers["retry-after"], answer["error"]["type"]) == (429, "1", "rate_limit_error")
        with pytest.raises(openai.RateLimitError, match="2 more requests wait"):
            client.completions.create(**COMPLETION)
        assert server.post({**COMPLETION, "temperature": -1})[0] == 400  # whatever is said of it later
        for connection in held:
            connection.close()
        server.wait_until(lambda: server.request("GET", "/health")[2]["active"] == 0)
        assert server.post(COMPLETION)[0] == 200


class TestAccess:
    """Who may ask."""

    @pytest.mark.parametrize("host", ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:1", "[::1]:80", "[::1]"])
    def test_names_of_this_machine_are_taken(self, running: RunningServer, host: str) -> None:
        assert running.request("GET", "/v1/models", None, {"Host": host})[0] == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "8.8.8.8"]
    )
    def test_other_names_are_refused_as_rebound_ones_are(self, running: RunningServer, host: str) -> None:
        for path in ("/v1/models", "/health", "/nothing"):
            status, _, answer = running.request("GET", path, None, {"Host": host})
            assert (status, answer["error"]["code"]) == (403, "host_not_allowed")

    @pytest.mark.parametrize(
        "header", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
    )
    def test_web_pages_from_elsewhere_are_refused(self, running: RunningServer, header: dict[str, str]) -> None:
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("OPTIONS", "/v1/completions")):
            status, headers, answer = running.request(method, path, json.dumps(COMPLETION), header)
            assert (status, answer["error"]["code"]) == (403, "origin_not_allowed")
            assert not any(name.startswith("access-control-") for name in headers)

    def test_a_page_of_its_own_would_be_taken(self, running: RunningServer) -> None:
        headers = {"Host": "localhost:80", "Origin": "http://localhost:80", "Sec-Fetch-Site": "same-origin"}
        status, found, _ = running.request("GET", "/v1/models", None, headers)
        assert status == 200
        assert not any(name.startswith("access-control-") for name in found)

    def test_a_key_is_asked_for(self, folder: Path) -> None:
        with serving(folder, slots=1, api_key="sesame") as server:
            status, headers, answer = server.post(COMPLETION)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
            assert headers["www-authenticate"] == "Bearer"
            assert server.request("GET", "/health")[0] == 200
        with serving(folder, slots=1, api_key="sesame") as server:
            with server.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
                client.models.list()
            with server.client(api_key="sesame") as client:
                assert client.completions.create(**COMPLETION).usage is not None
