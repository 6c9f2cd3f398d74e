"""Past FastAPI's layers: images to classify, the requests that there are many of.

To find the route, its parameters and their types takes FastAPI a sixth of an image's time on the event loop, see
tests/load/TRIED.md. Here and there `routes.classify` answers.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import ClientDisconnect, Request

from eca_service.errors import ServiceError
from eca_service.middleware import Message, Receive, Send
from eca_service.routes import CLASSIFY, classify

PATH = re.compile(r"/v1/(?:models/([^/]+)/(?:versions/([0-9]{1,9})/)?)?classify")
QUERY = re.compile(rb"(?:top_k=([0-9]{1,9}))?")


class Direct:
    """Answers what it understands as FastAPI would, and leaves all else to it: faulty parameters, other routes.

    It raises ServiceError, as the routes do.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        asked = _asked(scope)
        if asked is None:
            await self.app(scope, receive, send)
            return
        model, version, top_k = asked
        scope["route"] = CLASSIFY[model is not None, version is not None]
        try:
            response = await classify(Request(scope, receive), model, version, top_k)
        except ClientDisconnect:
            raise ServiceError("client_closed", "the caller went away") from None
        await response(scope, receive, send)


def _asked(scope: Message) -> tuple[str | None, int | None, int | None] | None:
    """Model, version and top_k, each None where it is not named; None where it is for FastAPI to say."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path, query = PATH.fullmatch(scope["path"]), QUERY.fullmatch(scope["query_string"])
    if path is None or query is None:
        return None
    return path[1], _number(path[2]), _number(query[1])


def _number(digits: str | bytes | None) -> int | None:
    return None if digits is None else int(digits)
