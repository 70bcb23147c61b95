"""The server process: its socket, its engine, and how it stops."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from compiler.errors import CompilerError
from compiler.runtime.serving.access_rules import AccessRules
from compiler.runtime.serving.admission import Admission
from compiler.runtime.serving.application import Service, build_application

if TYPE_CHECKING:
    from compiler.runtime.generation.engine import Engine

DOING = "starting the server"
CONNECTIONS_BESIDE = 256
"""Connections that are accepted beyond those whose requests run or wait; more are answered 503."""

FORCED_AFTER_SECONDS = 3.0
"""How long after the grace time a connection that does not end is cut."""

LEAST = {"slots": 1, "threads": 1, "max_waiting": 0, "max_body_bytes": 1, "grace_seconds": 0}


@dataclass(frozen=True)
class ServeOptions:
    """Where to listen, and how much at once. `port` 0 is any free one; `quiet` leaves the access log out."""

    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 4
    threads: int | None = None
    max_waiting: int = 64
    max_body_bytes: int = 2**20
    grace_seconds: float = 10.0
    api_key: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        """Raises CompilerError for numbers that cannot be."""
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                option = "--" + name.removesuffix("_seconds").replace("_", "-")
                raise CompilerError(DOING, f"{option} is less than {least}", f"Write {option} {least} or more.")
        if not 0 <= self.port <= 65535:
            raise CompilerError(DOING, f"--port {self.port} is no port", "Ports are 1 to 65535; 0 is any free one.")


class GenerationServer:
    """An engine behind a socket that already listens; `url` is what clients are given as base URL."""

    def __init__(self, engine: Engine, options: ServeOptions) -> None:
        """Raises CompilerError when the address cannot be had."""
        self.model = engine.name
        self._socket = _listening_socket(options.host, options.port)
        host, port = self._socket.getsockname()[:2]
        self.loopback = ipaddress.ip_address(host).is_loopback
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        self._admission = Admission(options.slots, options.max_waiting)
        service = Service(engine, self._admission, options.max_body_bytes)
        rules = AccessRules(loopback_only=self.loopback, api_key=options.api_key)
        config = uvicorn.Config(
            build_application(service, rules, _log(options.quiet)),
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="error" if options.quiet else "warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=options.slots + options.max_waiting + CONNECTIONS_BESIDE,
            timeout_graceful_shutdown=int(options.grace_seconds + FORCED_AFTER_SECONDS),
        )
        self._server = _StoppingServer(config, self._admission, options.grace_seconds)

    def run(self) -> None:
        """Serve until a signal or `stop`; in the main thread it minds SIGINT and SIGTERM."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Take no more requests and let those that run end within the grace time; from any thread."""
        self._server.should_exit = True


def serve(folder: Path, options: ServeOptions, announce: Callable[[GenerationServer], None]) -> None:
    """Serve the artifact in `folder` until it is told to stop; `announce` is called once requests are taken.

    Raises CompilerError when the artifact does not generate text, or the address cannot be had.
    """
    from compiler.runtime.generation.engine import Engine

    with Engine.open(folder, slots=options.slots, threads=options.threads) as engine:
        server = GenerationServer(engine, options)
        announce(server)
        server.run()


class _StoppingServer(uvicorn.Server):
    """Lets requests end within a grace time, aborts the rest with a word to their clients, and ends without a signal.

    uvicorn would send itself the signal again, which is no exit code 0.
    """

    def __init__(self, config: uvicorn.Config, admission: Admission, grace_seconds: float) -> None:
        super().__init__(config)
        self._admission = admission
        self._grace_seconds = grace_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: stop when done. Second: stop now."""
        if self.should_exit:
            print("stopped at once", file=sys.stderr, flush=True)
            os._exit(128 + sig)  # the engine's thread may be in a long call, and nothing has to be written
        self.should_exit = True
        if self._admission.present:
            name = signal.Signals(sig).name
            message = f"{name}: what runs may go on for {self._grace_seconds:g} s; again to stop at once"
            print(message, file=sys.stderr, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the socket, wait for requests, abort them after the grace time."""
        self._admission.stopping = True
        abort = asyncio.get_running_loop().call_later(self._grace_seconds, self._abort)
        await super().shutdown(sockets)
        abort.cancel()

    def _abort(self) -> None:
        self._admission.abort_all()
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # connections are cut on purpose from here on


def _listening_socket(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        problem = f"{host} port {port} cannot be had: {getattr(error, 'strerror', None) or error}"
        hint = "Another server may run there: give another port with --port, or --port 0 for any free one."
        if isinstance(error, socket.gaierror | UnicodeError):
            hint = "Give an address of this machine, such as 127.0.0.1."
        raise CompilerError(DOING, problem, hint) from None


def _log(quiet: bool) -> Callable[[str], None]:
    if quiet:
        return lambda line: None
    return lambda line: print(line, file=sys.stderr, flush=True)
