"""Whose pages may talk to this server: its own, and those of the origins that it is told of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["OwnOrigins"]


class OwnOrigins:
    """ASGI middleware that refuses what a browser sends on behalf of a page of another site, whatever the route.

    Without it a page of any site could make a visitor's browser post a form to this server: what CORS forbids is only
    that the page reads the answer. Programs other than browsers send neither ``Origin`` nor ``Sec-Fetch-Site``, and are
    let through. Place it behind what checks the host.

    Args:
        app: what is guarded.
        origins: allowed beside the server's own, such as ``https://viewer.example.org``.
        pattern: regular expression of further ones; None for none.
    """

    def __init__(self, app: Callable, origins: Sequence[str] = (), pattern: str | None = None) -> None:
        self.app = app
        self.origins = {origin.rstrip("/") for origin in origins}
        self.pattern = None if pattern is None else re.compile(pattern)

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """Serve, or refuse with 403."""
        foreign = self._foreign(scope) if scope["type"] in ("http", "websocket") else None
        if foreign is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "foreign origin"})
        else:
            body = json.dumps({"detail": f"{foreign}: pages of other sites may not ask this server"}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _foreign(self, scope: dict[str, Any]) -> str | None:
        """The foreign site behind a request, as an error names it; None where there is none."""
        found: dict[bytes, list[str]] = {b"origin": [], b"sec-fetch-site": [], b"host": []}
        for name, value in scope["headers"]:
            if name.lower() in found:
                found[name.lower()].append(value.decode("latin-1"))
        for origin in found[b"origin"]:
            if not self._allowed(origin, found[b"host"]):
                return f"Origin {origin[:100]!r}"
        # Links, pictures and frames of another page carry no origin.
        if not found[b"origin"] and not set(found[b"sec-fetch-site"]) <= {"same-origin", "none"}:
            return f"Sec-Fetch-Site {found[b'sec-fetch-site'][0][:100]!r}"
        return None

    def _allowed(self, origin: str, hosts: Sequence[str]) -> bool:
        if origin in self.origins or (self.pattern is not None and self.pattern.fullmatch(origin)):
            return True
        return len(hosts) == 1 and origin in (f"http://{hosts[0]}", f"https://{hosts[0]}")
