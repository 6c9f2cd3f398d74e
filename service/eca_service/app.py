"""The ASGI application: its routes, what is around them, start and end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from eca_service import docs, insight_routes, management, oip_http, openapi, page, problems, routes
from eca_service.addresses import from_here, joined
from eca_service.core import Core
from eca_service.direct import Direct
from eca_service.grpc_server import GrpcServer
from eca_service.head import HeadAsGet
from eca_service.middleware import Guard, Journal
from eca_service.negotiation import Negotiated
from eca_service.peers import Peers
from eca_service.schemas import EXPLAINS
from eca_service.settings import Settings
from eca_service.tls import Certificate

ASKED = (
    *("authorization", "x-api-key", "content-encoding", "inference-header-content-length"),
    *("x-request-id", "x-request-timeout-ms", "traceparent", "tracestate"),
)
TOLD = ("x-request-id", "server-timing", "retry-after", "inference-header-content-length", *EXPLAINS)


def create_app(settings: Settings, peers: Peers | None = None, certificate: Certificate | None = None) -> FastAPI:
    """The gateway; it connects to Triton when it starts and keeps asking until Triton is there.

    Raises SettingsError where a file that the settings name cannot be used.
    """
    core = Core(settings, peers or Peers())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await core.start()
        grpc_server = GrpcServer(core, certificate)
        await grpc_server.start()
        try:
            yield
        finally:
            await grpc_server.stop()
            await core.close()

    app = FastAPI(
        title="ECA Serve",
        version=version("eca-serve"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None if settings.docs == "off" else docs.OPENAPI,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours is in tracing.py and metrics.py
        redirect_slashes=False,  # to where the Host header says, and by http behind whoever speaks TLS for us
    )
    app.state.core = core
    app.include_router(routes.router)
    app.include_router(insight_routes.router)
    app.include_router(oip_http.router)
    address = joined(from_here(settings.host), settings.http_port)
    openapi.install(app, core.registry, core.access, f"{'https' if settings.tls_cert else 'http'}://{address}")
    if core.access.management:
        app.include_router(management.router)
    for switch, router, paths in (
        (settings.page, page.router, page.PATHS),
        (settings.docs, docs.router, docs.PATHS),
        (settings.metrics, routes.scraped, {routes.SCRAPED}),
    ):
        if switch != "off":
            app.include_router(router)
        if switch == "on":
            core.access.open(paths)
    problems.install(app)
    app.add_middleware(HeadAsGet)  # the innermost
    app.add_middleware(Direct)
    app.add_middleware(Negotiated)
    app.add_middleware(Guard, core=core)
    if settings.origins:  # outside of the guard: browsers ask beforehand, without a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=ASKED,
            expose_headers=TOLD,
        )
    app.add_middleware(Journal, core=core)  # the last one added is the outermost
    return app
