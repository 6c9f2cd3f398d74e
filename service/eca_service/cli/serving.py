"""The commands that serve: Triton and the gateway, together or each alone."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

import click

from eca_service import disk, logs
from eca_service.cli.options import with_settings, with_triton_settings
from eca_service.settings import Settings, SettingsError, load
from eca_service.stopping import Stopping, ending
from eca_service.tracing import http_endpoint
from eca_service.triton.server import free_port, require_free
from eca_service.triton.supervisor import TritonServer

logger = logging.getLogger(__name__)


@click.command()
@with_settings
def up(**given: str | None) -> None:
    """Starts the embedded Triton and the gateway; Ctrl-C drains and leaves no process behind.

    \b
    Example:
      eca-serve up --http-port 8090 --repository model_repository
    """
    settings = _load(given)
    if settings.triton_url is not None:
        raise SettingsError(
            f"ECA_TRITON_URL={settings.triton_url} is a Triton of your own, and `eca-serve up` starts another; "
            "unset it, or run `eca-serve gateway`"
        )
    _require_gateway(settings)
    triton = _triton(settings)
    with ending():
        try:
            triton.start()
            where = {"triton_url": triton.address, "triton_shared_memory": True, "triton_threads": triton.threads}
            _gateway(settings.model_copy(update=where))
        finally:
            triton.stop(at_once=True)


@click.command()
@with_settings
def gateway(**given: str | None) -> None:
    """Starts the gateway alone, in front of a Triton that runs elsewhere (--triton-url)."""
    settings = _load(given)
    _require_gateway(settings)
    _gateway(settings)


@click.command()
@with_triton_settings
def triton(**given: str | None) -> None:
    """Starts the embedded Triton alone."""
    settings = _load(given)
    server = _triton(settings)
    with ending():
        try:
            server.start()
            click.echo(f"Triton: {server.address} (gRPC), log in {settings.triton_log}")
            with Stopping() as stopping:
                stopping.wait()
        finally:
            with Stopping():  # asked again it does no less
                server.stop()


def _load(given: Mapping[str, object]) -> Settings:
    """The settings, as which the log is written from now on; with a free port in the place of each that is 0, so that
    all who name it or listen there have the same.
    """
    settings = load(given)
    logs.start(settings.log_format, settings.log_level)
    unsaid = (name for name in ("http_port", "grpc_port") if getattr(settings, name) == 0)
    return settings.model_copy(update={name: free_port() for name in unsaid})


def _triton(settings: Settings) -> TritonServer:
    return TritonServer(
        settings.repository,
        settings.triton_grpc_port,
        settings.triton_log,
        settings.triton_threads,
        settings.triton_host,
        http_endpoint(settings.otlp_endpoint),
    )


def _require_gateway(settings: Settings) -> None:
    """Raises SettingsError or TritonUnavailable where the gateway cannot run; before anything is started."""
    from eca_service.gateway import require_files

    require_files(settings)
    _require_models(settings)
    if settings.triton_url is None and settings.triton_grpc_port in {settings.http_port, settings.grpc_port}:
        raise SettingsError(
            f"ECA_TRITON_GRPC_PORT={settings.triton_grpc_port} is also a port of the gateway; change one of them"
        )
    require_free(settings.host, settings.http_port, "the gateway", "ECA_HTTP_PORT")
    require_free(settings.host, settings.grpc_port, "the gateway's gRPC", "ECA_GRPC_PORT")


def _require_models(settings: Settings) -> None:
    from eca_service.preflight import obstacle_of
    from eca_service.registry import Registry

    registry = disk.patiently(
        lambda: logger.warning("%s does not answer yet; waiting for its file system", settings.repository),
        *(Registry, settings.repository, settings.default_model, obstacle_of(settings.triton_url)),
    )
    if not registry.models:
        lacks = "holds no model that can be served here" if settings.repository.exists() else "does not exist"
        raise SettingsError(f"{settings.repository} {lacks}; `eca-build compile CHECKPOINT` makes one")
    registry.require_default()


def _gateway(settings: Settings) -> None:
    from eca_service.memory import shortage

    if short := shortage(settings):
        logger.warning("%s", short)
    if settings.workers > 1:
        from eca_service.workers import supervise

        sys.exit(supervise(settings))
    from eca_service.gateway import serve

    serve(settings)
