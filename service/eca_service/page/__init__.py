"""The page at `/`: a document, a style sheet, a script in modules; it asks this service alone.

They are served as they are, but for the links to /docs where that is switched off, or asks for a key, which no
link carries.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

FOLDER = Path(__file__).parent
# Nothing inline, nothing from elsewhere; blob: is the picture that the user chose, data: the page's icon.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
FILES = {"/": ("index.html", "text/html; charset=utf-8")}
FILES |= {f"/page/{file.name}": (file.name, KINDS[file.suffix]) for file in FOLDER.iterdir() if file.suffix in KINDS}
PATHS = frozenset(FILES)  # they ask for no key: whoever has one types it into the page

DOCS = re.compile(rb"<!-- docs -->.*?<!-- /docs -->")

router = APIRouter(include_in_schema=False)


def _serve(path: str, name: str, kind: str) -> None:
    whole = (FOLDER / name).read_bytes()
    contents = {True: whole, False: DOCS.sub(b"", whole)}  # by whether a browser is let in to /docs
    # weak: it may travel compressed
    tags = {docs: f'W/"{hashlib.sha256(content).hexdigest()[:32]}"' for docs, content in contents.items()}

    async def file(request: Request) -> Response:
        access = request.app.state.core.access
        docs = request.app.openapi_url is not None and (access.is_open("/docs") or not access.keyed)
        content, tag = contents[docs], tags[docs]
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "ETag": tag}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    router.add_api_route(path, file)


for _path, (_name, _kind) in FILES.items():
    _serve(_path, _name, _kind)
