"""HEAD is answered like GET (RFC 9110, 9.3.2), as `curl -I` and monitors ask; the server leaves the body away."""

from __future__ import annotations

from typing import Any

from eca_service.middleware import Message, Receive, Send


class HeadAsGet:
    """Wraps an ASGI application whose routes know GET alone."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        asked = {**scope, "method": "GET"}  # a copy: the server sees by its own that no body is to be sent
        try:
            await self.app(asked, receive, send)
        finally:
            scope["route"] = asked.get("route")  # for the log
