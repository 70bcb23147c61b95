"""`compile serve`: an artifact behind the OpenAI protocol."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from compiler.cli.shared import SHARED, Folder, Shared, Threads

if TYPE_CHECKING:
    from compiler.runtime.serving.server import GenerationServer


def serve(
    folder: Folder,
    *,
    host: Annotated[
        str, Parameter(help="The address to listen on; this machine alone unless told otherwise.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="The port; 0 is any free one.")] = 8000,
    slots: Annotated[int, Parameter(help="Texts that are generated at the same time.")] = 4,
    threads: Threads = None,
    max_waiting: Annotated[int, Parameter(help="Requests that may wait for a slot; one more gets 429.")] = 64,
    max_body_bytes: Annotated[int, Parameter(help="The longest request; a longer one gets 413.")] = 2**20,
    grace: Annotated[float, Parameter(help="Seconds that running requests have when the server is stopped.")] = 10.0,
    api_key: Annotated[
        str | None,
        Parameter(help="Ask clients for this key. Better kept in REGRAFT_API_KEY.", env_var="REGRAFT_API_KEY"),
    ] = None,
    shared: Shared = SHARED,
) -> None:
    """Serve an artifact over HTTP to OpenAI's clients: chat, completions, models, streaming."""
    from compiler.runtime.serving.server import ServeOptions
    from compiler.runtime.serving.server import serve as serve_artifact

    options = ServeOptions(host, port, slots, threads, max_waiting, max_body_bytes, grace, api_key, quiet=shared.quiet)

    def announce(server: GenerationServer) -> None:
        opening.close()
        if not server.loopback:
            protection = "whoever has the key" if api_key else "anyone, without a key (--api-key)"
            shared.terminal.warn(f"{host} can be reached from other machines: {protection} can use this server")
        shown = json.dumps({"url": server.url, "model": server.model}) if shared.json else server.url
        print(shown, flush=True)
        if not shared.quiet:
            print(f"{server.model}, {slots} slots; stop with Ctrl-C", file=sys.stderr, flush=True)

    with ExitStack() as opening:
        opening.enter_context(shared.terminal.working(f"opening {folder}"))
        serve_artifact(folder, options, announce)
