"""/docs: the OpenAPI document in Swagger's page."""

from __future__ import annotations

import base64
import hashlib

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

OPENAPI = "/openapi.json"
PLACE = '<div id="swagger-ui">'
ALONE = (
    "<p>This page takes Swagger from cdn.jsdelivr.net, which has not been reached from here. "
    f'<a href="{OPENAPI}">{OPENAPI}</a> has the same for other tools.</p>'
)
PATHS = frozenset({"/docs", OPENAPI})
router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def page(request: Request) -> Response:
    """The page; it may load Swagger from its network and ask this service, nothing else."""
    swagger = bytes(get_swagger_ui_html(openapi_url=OPENAPI, title=request.app.title).body).decode()
    found = HTMLResponse(swagger.replace(PLACE, PLACE + ALONE))  # which Swagger replaces
    script = swagger.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found.headers["content-security-policy"] = (
        f"default-src 'none'; script-src https://cdn.jsdelivr.net 'sha256-{digest}'; "
        "style-src https://cdn.jsdelivr.net 'unsafe-inline'; img-src data: https://fastapi.tiangolo.com; "
        "connect-src 'self'; frame-ancestors 'none'"
    )
    return found
