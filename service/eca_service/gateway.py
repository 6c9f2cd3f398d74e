"""The gateway's process: an event loop that answers HTTP and gRPC until it is told to end, and then drains."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import uvicorn
import uvloop

from eca_service.access import Access
from eca_service.addresses import EVERYWHERE, from_here, joined
from eca_service.app import create_app
from eca_service.connections import limited
from eca_service.core import Core
from eca_service.openapi import PHOTO
from eca_service.peers import Peers
from eca_service.settings import Settings
from eca_service.stopping import ENDING, LONGEST_WAIT_S, Terminal, hung_up
from eca_service.tls import Certificate
from eca_service.tracing import Tracing

logger = logging.getLogger(__name__)
QUIET_S = 0.3  # callers on open connections are told to close them, with the answer `draining`
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
LARGE_BYTES = 8 << 20  # an image of two million pixels
GARBAGE = 10_000, 20, 20  # objects made, and collections of the younger ones, until garbage is looked for
FRESH_S = 1.0  # callers that have just connected get as long to say what they want
FEW_FILES = 2048  # each connection is one: a thousand idle ones are none of our troubles


class Server(uvicorn.Server):
    """uvicorn's server, whose signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


class Loop(uvloop.Loop):
    """uvloop's; its servers wait for a TLS handshake as long as for a request's head, which uvicorn cannot be told.

    On "::" they listen for IPv4 too, as gRPC's does.
    """

    handshake_s = 10.0

    async def create_server(self, *args: Any, **given: Any) -> asyncio.AbstractServer:  # type: ignore[override]
        """As of any loop."""
        if given.get("host") == EVERYWHERE:
            given["host"] = None
        if given.get("ssl"):
            given["ssl_handshake_timeout"] = self.handshake_s
            given["ssl_shutdown_timeout"] = FRESH_S  # for a caller's close_notify: an idle one's never comes
        return await super().create_server(*args, **given)


def require_files(settings: Settings) -> None:
    """Raises SettingsError where a file of keys or certificates, or tracing as it is set, cannot be used."""
    Access(settings)
    Tracing(settings.otlp_endpoint).require()
    certificate_of(settings)


def certificate_of(settings: Settings) -> Certificate | None:
    """What the settings name, if anything. Raises SettingsError where it cannot be used."""
    return Certificate(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None


def serve(settings: Settings, listener: socket.socket | None = None, peers: Peers | None = None) -> None:
    """Answers until SIGTERM, SIGINT, SIGQUIT or SIGHUP.

    One of several workers is given the HTTP socket that they have in common, and its `peers`. Raises SettingsError
    where a file that the settings name cannot be used.
    """
    _release_memory(settings.decode_threads)
    allow_files()
    peers = peers or Peers()
    certificate = certificate_of(settings)
    app = create_app(settings, peers, certificate)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.http_port,
        loop="uvloop",
        http=limited(settings.max_head_bytes, settings.head_timeout_ms / 1000),
        timeout_keep_alive=-(-settings.keep_alive_ms // 1000),
        log_config=None,  # its messages go where all others go
        log_level=settings.log_level,
        access_log=False,
        proxy_headers=False,  # nobody is believed who says which address he calls for
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=5,
        server_header=False,
        ws="none",
    )
    if certificate:
        config.load()
        config.ssl = certificate.context  # which follows the files
    server, core = Server(config), app.state.core

    def loop() -> Loop:
        made = Loop()
        made.handshake_s = settings.head_timeout_ms / 1000
        return made

    async def run() -> None:
        asked = asyncio.Event()
        for number in ENDING:
            asyncio.get_running_loop().add_signal_handler(number, asked.set)
        for number in hung_up():
            asyncio.get_running_loop().add_signal_handler(number, lambda: None if core.leaving else asked.set())
        others = [asyncio.create_task(_end(server, core, asked)), asyncio.create_task(peers.beat())]
        if hung_up():
            others.append(asyncio.create_task(_end_with_terminal(core, asked)))
        others.append(asyncio.create_task(_announce(server, core)))
        if certificate:
            others.append(asyncio.create_task(certificate.follow()))
        try:
            await server.serve([listener] if listener else None)
        finally:
            for task in others:
                task.cancel()

    gc.freeze()  # what is here stays for good; to look through it again and again took 4 % of the event loop
    gc.set_threshold(*GARBAGE)
    uvloop.run(run(), loop_factory=loop)


async def _end_with_terminal(core: Core, asked: asyncio.Event) -> None:
    terminal = Terminal()
    while not terminal.went():
        await asyncio.sleep(LONGEST_WAIT_S)
    if not core.leaving:
        asked.set()


async def _end(server: Server, core: Core, asked: asyncio.Event) -> None:
    """Once asked: no longer ready, then refusing what is new, then ended when what runs is answered.

    Asked again it ends at once, and what runs is cut off.
    """
    await asked.wait()
    asked.clear()
    settings = core.settings
    core.leaving = True
    patience = asyncio.create_task(asked.wait())
    await asyncio.wait({patience}, timeout=settings.drain_delay_ms / 1000)
    core.draining = True
    end = time.monotonic() + settings.grace_ms / 1000
    quiet_since = time.monotonic()
    while time.monotonic() < end and not patience.done():
        if core.admission.requests:
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since > QUIET_S:
            break
        await asyncio.sleep(0.02)
    for listener in getattr(server, "servers", ()):  # there are none before its models were asked for
        listener.close()
    end = time.monotonic() + FRESH_S
    while _fresh(server) and time.monotonic() < end and not patience.done():
        await asyncio.sleep(0.02)
    patience.cancel()
    if core.admission.requests:  # their time is up
        core.hurried = True
        server.config.timeout_graceful_shutdown = 0
    server.should_exit = True


def allow_files() -> None:
    """Lets this process have as many files open as it may; where these are few the log says so.

    At the limit uvloop closes each new connection without a word, to its caller or to us.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most != resource.RLIM_INFINITY and most < FEW_FILES:
        logger.warning(
            "a process may have %d files open here, and each connection needs one; those beyond are closed unanswered; "
            "raise the hard limit (`ulimit -Hn`, LimitNOFILE, --ulimit nofile) to %d or more",
            *(most, FEW_FILES),
        )


def _release_memory(decode_threads: int) -> None:
    """Has large images given back to the system: glibc raises its limit for that, and keeps what they took for ever.

    What smaller ones took is kept: glibc no longer raises its limit for that either, and to take an image's memory anew
    costs as much time as to decode it. Each arena keeps its own, so there are no more than decoders, the event loop and
    gRPC's threads can use at once: glibc would make eight for every core in the course of time.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGE_BYTES)
        libc.mallopt(M_ARENA_MAX, decode_threads + 2)


def _fresh(server: Server) -> bool:
    """Whether a connection was made whose first request has not come yet: it is still told `draining`."""
    return any(
        getattr(connection, "cycle", None) is None or getattr(connection, "_closing", None)
        for connection in server.server_state.connections
    )


async def _announce(server: Server, core: Core) -> None:
    """Prints the addresses once every model is ready and both ports are open; one of several workers does."""
    while not (server.started and core.ready):
        await asyncio.sleep(0.1)
    if not core.peers.announces():
        return
    settings = core.settings
    scheme, names = "https" if settings.tls_cert else "http", ", ".join(core.registry.models)
    listens = f"{scheme}://{joined(settings.host, settings.http_port)}"
    click.echo(f"ECA Serve is ready: {listens} and gRPC on {joined(settings.host, settings.grpc_port)} ({names})")
    url = f"{scheme}://{joined(from_here(settings.host), settings.http_port)}"
    click.echo("Ctrl-C ends it" if settings.docs == "off" else f"Documentation at {url}/docs; Ctrl-C ends it")
    photo = PHOTO if Path(PHOTO).exists() else "photo.jpg"
    options = '-H "Authorization: Bearer $KEY" ' if settings.api_keys_file else ""
    options += f"--cacert {settings.tls_cert} " if settings.tls_cert else ""
    click.echo(f"  curl {options}--data-binary @{photo} '{url}/v1/classify?top_k=3'")
