"""What is wrong with this machine, this repository, this running service: each in a sentence."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from eca_service import metrics
from eca_service.client import Client, ClientError
from eca_service.diagnosis import Finding, Window, diagnose
from eca_service.errors import ServiceError
from eca_service.gateway import certificate_of, require_files
from eca_service.integrity import damage
from eca_service.memory import shortage
from eca_service.preflight import obstacle_of
from eca_service.registry import Model, Registry, pinned, read_pin, versions
from eca_service.resolver import Resolver
from eca_service.settings import Settings, SettingsError
from eca_service.triton import native
from eca_service.triton.model import config
from eca_service.triton.server import TritonUnavailable, installation

CONNECT_S = 2.0


def files(settings: Settings) -> Iterator[Finding]:
    """Whether the files of keys and certificates can be used, and callers take the certificate."""
    try:
        require_files(settings)
        certificate = certificate_of(settings)
    except SettingsError as error:
        yield Finding(str(error), wrong=True)
        return
    if certificate and (reason := certificate.refusal()):
        yield Finding(f"Callers refuse ECA_TLS_CERT={certificate.chain}: {reason}", wrong=True)
    elif certificate and (soon := certificate.expires_soon()):
        yield Finding(f"{soon}.")


def machine(settings: Settings) -> Iterator[Finding]:
    """Whether there is memory enough, and the embedded Triton can run here, or the others be reached from here."""
    if short := shortage(settings):
        yield Finding(f"{short[0].upper()}{short[1:]}.")
    if settings.triton_url is None:
        try:
            installation()
            yield Finding("The embedded Triton can run here.")
        except TritonUnavailable as error:
            yield Finding(str(error), wrong=True)
            return
        try:
            native.library()
        except native.NotCompiled as error:
            yield Finding(f"{error}. {native.INSTEAD}.")
        return
    yield Finding(f"Triton runs elsewhere, at {settings.triton_url}.")
    addresses = sorted(asyncio.run(Resolver(settings.triton_url).addresses()))
    if not addresses:
        yield Finding(f"{settings.triton_url} resolves to no address; has Triton been started?", wrong=True)
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except OSError as error:
            yield Finding(f"the Triton at {address} does not take connections: {error}", wrong=True)
    if len(addresses) > 1:
        yield Finding(f"There are {len(addresses)} Tritons behind it.")


def repository(settings: Settings, registry: Registry) -> Iterator[Finding]:
    """What there is to be served, and what cannot be."""
    obstacle = obstacle_of(settings.triton_url)
    for folder, why in registry.unreadable.items():
        yield Finding(f"{folder} is not served: {why}", wrong=True)
    for name, model in registry.models.items():
        served = f"{name} version {model.contract.version}"
        yield Finding(f"{served}: {model.contract.architecture}, {model.contract.precision}, {model.contract.engine}.")
        if reason := obstacle(model.contract) or damage(model.contract, model.folder) or _misconfigured(model):
            yield Finding(f"{served} cannot be served: {reason}", wrong=True)
        if model.contract.runtime == "openvino" and settings.triton_url is None and not find_spec("openvino"):
            yield Finding(
                f"{served} is fastest in OpenVINO, which is not installed, so onnxruntime runs it; "
                "pip install 'eca-serve[openvino]'."
            )
        pin, newest = pinned(settings.repository, name), versions(settings.repository, name)[-1]
        if pin is None and (written := read_pin(settings.repository, name)) is not None:
            yield Finding(
                f"{name} is pinned to {written!r}, which is not one of its versions; the pin is ignored", wrong=True
            )
        elif pin is not None and pin < newest:
            yield Finding(
                f"{name} is pinned to version {pin}, although there is version {newest}; "
                f"`eca-serve rollback {name} --newest` serves that."
            )
    if not registry.models:
        wrong = f"{settings.repository} holds no model; `eca-build compile CHECKPOINT` makes one"
        yield Finding(wrong, wrong=True)
        return
    try:
        registry.require_default()
    except SettingsError as error:
        yield Finding(str(error), wrong=True)


def _misconfigured(model: Model) -> str | None:
    try:
        config(model.folder.parent, {model.contract.version}, model.contract)
    except ServiceError as error:
        return error.detail
    return None


def service(client: Client, seconds: float, registry: Registry | None = None) -> Iterator[Finding]:
    """What the service says of itself, and what it does in `seconds`; held against `registry` where given."""
    with client:
        verdict = client.unready()
        yield Finding(verdict, wrong=True) if verdict else Finding(f"The service at {client.url} is ready.")
        try:
            before, began = metrics.parse(client.metrics()), time.monotonic()
            models = client.models()
            time.sleep(seconds)
            after = metrics.parse(client.metrics())
        except ClientError as error:
            if error.code == "unauthorized":
                yield Finding(f"It shows more to callers with a key ({error.detail}); give one with --api-key-file.")
            elif verdict is None:
                yield Finding(error.detail, wrong=True)
            return
    if registry:
        yield from _stale({model.name: model.contract for model in models}, registry)
    window = Window(before, after, time.monotonic() - began)
    yield from diagnose(window, {model.name: model.contract["max_batch"] for model in models})


def _stale(served: Mapping[str, Mapping[str, Any]], registry: Registry) -> Iterator[Finding]:
    for name, model in registry.models.items():
        version = model.contract.version
        if name not in served:
            yield Finding(
                f"{name} is in the repository, but the service does not serve it; its log says why", wrong=True
            )
        elif (now := served[name]["version"]) != version:
            text = f"{name} should be served in version {version}, but the service serves {now}; its log says why"
            yield Finding(text, wrong=True)
        elif served[name]["engine_sha256"] != model.contract.engine_sha256:
            text = f"{name} version {version} is not the build that the service serves under this number"
            yield Finding(f"{text}; build it again, so that it gets a number of its own", wrong=True)
