"""Large HTTP answers are compressed where the caller accepts it: gzip or deflate, by Accept-Encoding (RFC 9110)."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

from eca_service.bodies import WINDOWS
from eca_service.middleware import Message, Receive, Send

SMALLEST_BYTES = 1024  # less fits into one packet anyway
AWAY_BYTES = 64 << 10  # more would hold up the event loop
LEVEL = 5


class Negotiated:
    """Wraps an ASGI application; answers that come in one piece are compressed, streams and images are not."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        accepted = b""
        if scope["type"] == "http":
            accepted = b",".join(value for name, value in scope["headers"] if name == b"accept-encoding")
        encoding = chosen(accepted.decode("latin-1")) if accepted else None
        if encoding is None:
            await self.app(scope, receive, send)
            return
        begun: Message | None = None

        async def compressed(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = message
                return
            start, begun = begun, None
            if start is not None:
                body = message.get("body", b"")
                if not message.get("more_body") and len(body) >= SMALLEST_BYTES and _gains(start["headers"]):
                    away = len(body) > AWAY_BYTES
                    body = await asyncio.to_thread(_packed, body, encoding) if away else _packed(body, encoding)
                    message["body"] = body
                    kept = [(name, value) for name, value in start["headers"] if name != b"content-length"]
                    kept += [(b"content-length", str(len(body)).encode()), (b"content-encoding", encoding.encode())]
                    start["headers"] = [*kept, (b"vary", b"accept-encoding")]
                await send(start)
            await send(message)

        await self.app(scope, receive, compressed)


def weights(accepted: str) -> dict[str, float]:
    """What an Accept header, or one like it, names, in lower case, with its weight (RFC 9110, 12.4.2) or 1."""
    found: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, *parameters = (one.strip() for one in part.split(";"))
        given = dict(one.replace(" ", "").partition("=")[::2] for one in parameters)
        try:
            found[name] = float(given.get("q") or 1)
        except ValueError:
            continue
    return found


def chosen(accepted: str) -> str | None:
    """Of gzip and deflate the one that an Accept-Encoding prefers, gzip where it does not care; None where neither."""
    given = weights(accepted)
    offered = {name: given.get(name, given.get("*", 0.0)) for name in ("gzip", "deflate")}
    best = max(offered, key=lambda name: offered[name])
    return best if offered[best] > 0 else None


def _gains(headers: list[tuple[bytes, bytes]]) -> bool:
    found = dict(headers)
    kind = found.get(b"content-type", b"")
    return b"content-encoding" not in found and (not kind.startswith(b"image/") or b"svg" in kind)


def _packed(body: bytes, encoding: str) -> bytes:
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, WINDOWS[encoding])
    return packer.compress(body) + packer.flush()
