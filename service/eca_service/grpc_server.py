"""The Open Inference Protocol v2 over gRPC, with gRPC's own health checks and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2, service_pb2_grpc

from eca_service import oip
from eca_service.addresses import joined
from eca_service.cancellation import in_time
from eca_service.contract import Contract
from eca_service.core import Core
from eca_service.errors import ServiceError
from eca_service.framing import FRAMING_BYTES
from eca_service.grpc_calls import Context, Interceptor, permit_of_call
from eca_service.labels import top_k_of
from eca_service.tls import Certificate

SERVICE = "inference.GRPCInferenceService"
READ_ABOVE = 1.25  # of the largest message: gRPC's own refusal is seen by nobody here, ours has a code
LARGEST = (1 << 31) - 1  # bytes of a message that gRPC can count
GRACE_S = 20.0
MAX_STREAMS = 1024  # calls at once on one connection
PING_MS = 5000  # callers may look for us as often
COMPRESS_BYTES = 8 << 10  # smaller answers are not worth compressing
WATCH_EVERY_S = 0.5


class GrpcServer:
    """The port `settings.grpc_port`; `start` binds it, `stop` lets running calls finish."""

    def __init__(self, core: Core, certificate: Certificate | None = None) -> None:
        settings, self._core = core.settings, core
        largest = int(READ_ABOVE * settings.max_body_bytes) + FRAMING_BYTES
        self._server = grpc.aio.server(
            interceptors=[Interceptor(core)],
            options=[
                ("grpc.max_receive_message_length", min(largest, LARGEST)),
                ("grpc.default_compression_level", 2),  # of what the caller accepts; an algorithm would be forced on it
                ("grpc.max_metadata_size", settings.max_head_bytes),
                ("grpc.absolute_max_metadata_size", settings.max_head_bytes),
                ("grpc.server_handshake_timeout_ms", settings.head_timeout_ms),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                ("grpc.keepalive_time_ms", 60_000),  # finds callers that are gone without a word
                ("grpc.http2.min_ping_interval_without_data_ms", PING_MS),
                ("grpc.keepalive_permit_without_calls", 1),  # between calls too
                ("grpc.so_reuseport", int(settings.workers > 1)),
            ],
        )
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Inference(core), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(Health(core), self._server)
        if settings.docs != "off":
            names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        address = joined(settings.host, settings.grpc_port)
        if certificate:
            self._server.add_secure_port(address, certificate.credentials())
        else:
            self._server.add_insecure_port(address)

    async def start(self) -> None:
        """Begins to answer."""
        await self._server.start()

    async def stop(self) -> None:
        """Answers what has begun, for at most 20 s; where the core is hurried, cuts it off."""
        await self._server.stop(0 if self._core.hurried else GRACE_S)


class Inference(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """inference.GRPCInferenceService; what it does not define answers UNIMPLEMENTED.

    Its errors are `ServiceError`s, which the interceptor answers.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    async def ServerLive(self, request: Any, context: Context) -> Any:
        """The process is alive."""
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Context) -> Any:
        """Every model gave its golden answers."""
        return service_pb2.ServerReadyResponse(ready=self._core.ready)

    async def ModelReady(self, request: Any, context: Context) -> Any:
        """The model gave its golden answers."""
        contract = self._contract(request)
        ready = self._core.readiness.is_ready(contract.name) and not self._core.leaving
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any, context: Context) -> Any:
        """Name, version, extensions."""
        return service_pb2.ServerMetadataResponse(**oip.server_metadata())

    async def ModelMetadata(self, request: Any, context: Context) -> Any:
        """A model's tensors."""
        return service_pb2.ModelMetadataResponse(**oip.model_metadata(self._contract(request)))

    async def ModelConfig(self, request: Any, context: Context) -> Any:
        """A model's configuration, which load generators ask for."""
        return service_pb2.ModelConfigResponse(config=oip.model_config(self._contract(request)))

    async def ModelStatistics(self, request: Any, context: Context) -> Any:
        """What this process has counted of the model named, or of all."""
        named = (self._contract(request),) if request.name else ()
        return oip.statistics(self._core.totals(*named))

    async def ModelInfer(self, request: Any, context: Context) -> Any:
        """Classifies the encoded images of the input `image`."""
        core, permit = self._core, permit_of_call()
        left_s = context.time_remaining()
        if left_s is None:
            left_s = core.settings.deadline_ms / 1000
        deadline = asyncio.get_running_loop().time() + left_s
        version = oip.require_version(request.model_version)
        model = core.registry.get(request.model_name, version)
        contract = model.contract
        permit.entry.model = contract.name
        core.require(model, deadline)
        if len(request.inputs) != 1:
            raise ServiceError("bad_request", f"the request has {len(request.inputs)} inputs, the model has one: image")
        tensor = request.inputs[0]
        count = oip.require_input(tensor.name, tensor.datatype, tensor.shape, core.most_images)
        oip.require_plain(tensor.name, tensor.parameters)
        if request.raw_input_contents:
            images = oip.unpack(b"".join(request.raw_input_contents), count)
        else:
            images = list(tensor.contents.bytes_contents)
        if len(images) != count:
            raise ServiceError("bad_request", f"image has shape [{count}] and holds {len(images)} images")
        oip.require_parameters(request.parameters)
        top_k = top_k_of(_parameter(request, "top_k"), contract)
        names = oip.require_outputs([output.name for output in request.outputs])
        for output in request.outputs:
            oip.require_plain(output.name, output.parameters)
        with core.registry.lease(model):
            answer = await in_time(core.classify(model, images, top_k, deadline, permit, version), deadline)
        response = service_pb2.ModelInferResponse(
            model_name=contract.name, model_version=str(answer.contract.version), id=request.id
        )
        if warnings := oip.warnings(answer):
            response.parameters["warnings"].string_param = warnings
        for output in oip.tensors(answer, top_k, names):
            response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
            response.raw_output_contents.append(output.raw())
        if sum(map(len, response.raw_output_contents)) < COMPRESS_BYTES:
            context.disable_next_message_compression()
        stamps = (("x-request-id", permit.entry.request_id), ("server-timing", answer.server_timing()))
        context.set_trailing_metadata(stamps)
        return response

    def _contract(self, request: Any) -> Contract:
        return self._core.registry.get(request.name, oip.require_version(request.version)).contract


def _parameter(request: Any, name: str) -> Any:
    """A parameter's value; None where there is none, empty where it has none."""
    if name not in request.parameters:
        return None
    given = request.parameters[name]
    kind = given.WhichOneof("parameter_choice")
    return getattr(given, kind) if kind else ""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1, asked of the service as a whole or of its one service.

    Anybody may watch, by thousands of streams: one task looks for all of them.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._looking: asyncio.Task[None] | None = None

    async def Check(self, request: Any, context: Context) -> Any:
        """SERVING while every model is golden."""
        if request.service not in {"", SERVICE}:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r}")
        return self._status(request.service)

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """The state now, and again whenever it changes."""
        told = None
        while not self._core.leaving:
            status = self._status(request.service)
            if status != told:
                yield status
                told = status
            else:  # at once, so that no change is missed
                await self._change()
        yield self._status(request.service)

    async def _change(self) -> None:
        """Returns once the state is another than it is now."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(self._core.ready, self._core.leaving))
        await asyncio.shield(self._looking)  # of many who wait one may leave

    async def _look(self, *state: bool) -> None:
        while (self._core.ready, self._core.leaving) == state:
            await asyncio.sleep(WATCH_EVERY_S)

    def _status(self, service: str) -> Any:
        kinds = health_pb2.HealthCheckResponse
        if service not in {"", SERVICE}:
            return kinds(status=kinds.SERVICE_UNKNOWN)
        return kinds(status=kinds.SERVING if self._core.ready else kinds.NOT_SERVING)
