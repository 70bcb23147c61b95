"""`compile serve` when clients leave, when the engine fails, and when the server is told to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from serving_harness import HELLO, MODEL, RunningServer, SlowDecoder, serving
from small_decoder import write_decoder

from compiler.cli import main

LONG: dict[str, Any] = {"model": MODEL, "prompt": "a", "temperature": 0, "max_tokens": 500}
"""Ten seconds of a SlowDecoder."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("lifetime")
    write_decoder(base / "small", base / "model", end_tokens=())
    return base / "small"


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[RunningServer]:
    """One slot, slow."""
    with serving(folder, decoder=SlowDecoder, slots=1) as server:
        yield server


class TestDeparture:
    """A client that goes away."""

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_closed_connection_frees_its_slot(self, running: RunningServer, stream: bool) -> None:
        connection = running.open_socket({**LONG, "stream": stream})
        running.wait_until(lambda: running.engine.active == 1)
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()
        assert running.wait_until(lambda: running.engine.active == 0) < 1

    def test_a_reset_connection_frees_its_slot(self, running: RunningServer) -> None:
        connection = running.open_socket({**LONG, "stream": True})
        connection.recv(100)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
        assert running.wait_until(lambda: running.engine.active == 0) < 1

    def test_the_client_librarys_close_frees_it_too(self, running: RunningServer) -> None:
        with running.client() as client:
            stream = client.completions.create(**LONG, stream=True)
            next(iter(stream))
            assert running.engine.active == 1
            stream.close()
            assert running.wait_until(lambda: running.engine.active == 0) < 1

    def test_one_who_waits_leaves_the_queue(self, running: RunningServer) -> None:
        first = running.open_socket({**LONG, "stream": True})
        running.wait_until(lambda: running.engine.active == 1)
        second = running.open_socket(LONG)
        running.wait_until(lambda: running.engine.waiting == 1)
        second.close()
        assert running.wait_until(lambda: running.engine.waiting == 0) < 1
        assert running.engine.active == 1
        first.close()
        running.wait_until(lambda: running.engine.active == 0)

    def test_a_client_that_does_not_read_holds_no_slot(self, folder: Path) -> None:
        with serving(folder, slots=1) as server:
            connection = server.open_socket({**LONG, "stream": True})
            assert server.post({**LONG, "max_tokens": 3})[0] == 200
            server.wait_until(lambda: server.request("GET", "/health")[2]["active"] == 0)
            connection.close()


def test_a_failing_engine_is_a_500_or_an_error_in_the_stream(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def failing(self: SlowDecoder, tokens: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > 3:
            raise ValueError("the cat sat on it")
        return super(SlowDecoder, self).decode(tokens)

    monkeypatch.setattr(SlowDecoder, "decode", failing)
    with serving(folder, decoder=SlowDecoder, slots=1) as server, server.client() as client:
        with pytest.raises(openai.APIError, match="the server failed"):
            list(client.completions.create(**LONG, stream=True))
        with pytest.raises(openai.InternalServerError, match="the server failed") as caught:
            client.completions.create(**LONG)
        assert "cat" not in str(caught.value)
        assert "the cat sat on it" in capfd.readouterr().err
        steps = -1000
        assert client.completions.create(**{**LONG, "max_tokens": 4}).choices[0].finish_reason == "length"


class TestStop:
    """The server is told to stop."""

    def test_streams_that_end_in_time_end_well(self, folder: Path) -> None:
        with serving(folder, decoder=SlowDecoder, slots=1, grace_seconds=10) as server, server.client() as client:
            stream = client.completions.create(**{**LONG, "max_tokens": 20}, stream=True)
            chunks = [next(iter(stream))]
            server.server.stop()
            chunks += list(stream)
            server.thread.join(5)
            assert not server.thread.is_alive()
        assert chunks[-1].choices[0].finish_reason == "length"
        assert len("".join(chunk.choices[0].text for chunk in chunks)) >= 18

    def test_those_that_do_not_are_told(self, folder: Path) -> None:
        with serving(folder, decoder=SlowDecoder, slots=1, grace_seconds=0.3) as server, server.client() as client:
            stream = client.completions.create(**LONG, stream=True)
            next(iter(stream))
            waiting: list[Exception] = []

            def wait() -> None:
                with server.client() as other:
                    try:
                        other.completions.create(**LONG)
                    except openai.APIError as error:
                        waiting.append(error)

            thread = threading.Thread(target=wait)
            thread.start()
            server.wait_until(lambda: server.engine.waiting == 1)
            started = time.perf_counter()
            server.server.stop()
            with pytest.raises(openai.APIError, match="the server is stopping"):
                list(stream)
            thread.join(5)
            assert [type(error).__name__ for error in waiting] == ["InternalServerError"]
            assert "stopping" in str(waiting[0])
            server.thread.join(5)
            assert time.perf_counter() - started < 3
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(server.address)

    def test_neither_an_unfinished_request_nor_one_who_does_not_read_holds_it_up(
        self, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("compiler.runtime.serving.server.FORCED_AFTER_SECONDS", 1)
        with serving(folder, slots=1, grace_seconds=0.2, quiet=False) as server:
            unfinished = socket.create_connection(server.address, timeout=20)
            unfinished.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            idle = socket.create_connection(server.address, timeout=20)
            deaf = [server.open_socket({**LONG, "stream": True}) for _ in range(2)]
            time.sleep(0.2)
            server.server.stop()
            server.thread.join(5)
            assert not server.thread.is_alive()
            assert unfinished.recv(100).startswith(b"HTTP/1.1 503")
        for connection in (unfinished, idle, *deaf):
            connection.close()
        assert "Traceback" not in capfd.readouterr().err


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`compile serve` in a process of its own; killed in the end, if it is still there."""
    command = [sys.executable, "-m", "compiler.cli", "serve", *map(str, arguments)]
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class TestProcess:
    """The command itself."""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_it_with_0(self, folder: Path, number: signal.Signals) -> None:
        with started(folder, "--port", 0, "--slots", 2, "--threads", 1) as process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            with OpenAI(base_url=url, api_key="none") as client:
                answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5)
                assert answer.usage is not None
                prompt_tokens = answer.usage.prompt_tokens
            process.send_signal(number)
            rest, said = process.communicate(timeout=20)
        assert process.returncode == 0
        assert rest == ""
        start, line = said.splitlines()
        assert start == "small, 2 slots; stop with Ctrl-C"
        assert "POST /v1/chat/completions 200 " in line
        assert f"{prompt_tokens} + 5 tokens, first after " in line
        assert line.endswith("tokens/s, length")

    def test_a_second_signal_ends_it_at_once(self, folder: Path) -> None:
        with started(folder, "--port", 0, "--slots", 1, "--grace", 60, "--quiet") as process:
            assert process.stdout is not None
            port = int(process.stdout.readline().strip().rpartition(":")[2].removesuffix("/v1"))
            body = json.dumps({**LONG, "prompt": "a"}).encode()
            with socket.create_connection(("127.0.0.1", port)) as connection:
                head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body) + 1}\r\n\r\n"
                connection.sendall(head.encode() + body)  # one byte is missing: it is waited for
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
                time.sleep(0.5)
                assert process.poll() is None
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=5)
        assert process.returncode == 130
        assert said == "stopped at once\n"

    def test_json_and_a_warning_where_others_can_reach_it(self, folder: Path) -> None:
        with started(folder, "--port", 0, "--host", "0.0.0.0", "--json") as process:
            assert process.stdout is not None
            document = json.loads(process.stdout.readline())
            assert document["model"] == MODEL
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=20)
        assert said.startswith("warning: 0.0.0.0 can be reached from other machines: anyone, without a key")


def test_what_cannot_be_served_is_said_in_a_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, words in (
            ((folder, "--port", port), f"127.0.0.1 port {port} cannot be had: Address already in use"),
            ((folder, "--port", 70000), "--port 70000 is no port"),
            ((folder, "--slots", 0), "--slots is less than 1"),
            ((folder, "--grace", -1), "--grace is less than 0"),
            ((folder, "--host", "no such host"), "no such host port 8000 cannot be had"),
            ((tmp_path / "none",), "there is no such folder"),
        ):
            assert main(["serve", *map(str, arguments)]) == 1
            shown, said = capsys.readouterr()
            problem, hint = said.splitlines()
            assert words in problem
            assert hint.startswith("Hint: ")
            assert shown == ""


def test_a_missing_package_is_named_with_what_brings_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "compiler.runtime.serving.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(folder)]) == 1
    assert capsys.readouterr().err == "starting: uvicorn is not installed\nHint: pip install 'regraft[serve]'\n"
