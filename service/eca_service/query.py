"""Options that would be passed over: given twice, misspelt, or where nobody reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fastapi import Request

from eca_service.errors import ServiceError

SEVERAL = frozenset({"models"})  # parameters that may be given more than once
TAKEN = ("class", "gates", "models", "opacity", "side", "top_k")  # by any route: a test compares
MOST_NAME = 40  # characters that are looked at: JSON's may have millions, which takes the interpreter ten seconds
PATH = frozenset({"model", "version"})  # what a route has there


def _bare(name: str) -> str:
    """The name without what is easily mistaken: case, separators, a plural."""
    return re.sub(r"[^a-z]", "", name[:MOST_NAME].lower()).removesuffix("s")


READ = (
    "give options of /v1 in the query, as ?top_k=3, top_k of /v2 in the request's parameters, "
    "model and version in the path"
)
KNOWN = frozenset(_bare(name) for name in (*TAKEN, *PATH))


def require_no_option(names: Iterable[str], where: str) -> None:
    """Raises bad_request where one of the names is meant as an option, and none is read `where` it stands."""
    for name in names:
        if _bare(name) in KNOWN:
            raise ServiceError("bad_request", f"{where} {name[:20]!r} is not read; {READ}")


async def require_no_options(request: Request) -> None:
    """As `require_no_option` of the query of a route that reads none of it: the Open Inference Protocol's."""
    require_no_option(request.query_params, "in the query of this protocol")


async def require_clear(request: Request) -> None:
    """Of a parameter that is given twice FastAPI takes the last, and one that the route does not have it ignores.

    The latter is right for those that proxies and trackers add, and wrong where `topk` or `model` is meant. Raises
    bad_request.
    """
    names = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    for name in names:
        if name not in SEVERAL and (times := len(request.query_params.getlist(name))) > 1:
            raise ServiceError("bad_request", f"{name} is given {times} times; give it once")
    for name in request.query_params if names else ():
        if name not in names and _bare(name) in KNOWN:
            in_path = _bare(name) in PATH and "models" not in names
            path = "; routes that take it have it in their path" if in_path else ""
            raise ServiceError(
                "bad_request", f"there is no parameter {name!r} here; there are: {', '.join(names)}{path}"
            )
