"""Who may ask: the local user's programs and those with the key, and never a web page of somebody else.

A page in the user's browser can reach a server on loopback. It is known by its Origin or Sec-Fetch-Site header; one
that has rebound its own host name to 127.0.0.1 is known by its Host header. No CORS header is ever sent.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from compiler.runtime.serving.failures import RequestRefusedError


@dataclass(frozen=True)
class AccessRules:
    """`loopback_only` checks the Host header; `api_key` is asked of everything but /health."""

    loopback_only: bool = True
    api_key: str | None = None

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Raises RequestRefusedError."""
        host = headers.get("host", "")
        if self.loopback_only and not _is_loopback(host):
            message = f"the host {host[:80]!r} is not this machine's; use http://127.0.0.1 or http://localhost"
            raise RequestRefusedError(403, message, code="host_not_allowed")
        self._check_browser(host, headers)
        if self.api_key is not None and path != "/health":
            self._check_key(headers.get("authorization", ""), self.api_key)

    def _check_browser(self, host: str, headers: Mapping[str, str]) -> None:
        origin = headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2] != host
        if foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            message = "requests of web pages from elsewhere are refused"
            raise RequestRefusedError(403, message, code="origin_not_allowed")

    def _check_key(self, authorization: str, key: str) -> None:
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
            message = "the API key is missing or wrong; send it as: Authorization: Bearer KEY"
            raise RequestRefusedError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.removeprefix("[").removesuffix("]")
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
