"""The gRPC port in front of a Triton that is made: what it passes on, what it refuses, and what it says of itself."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from eca_service.core import Core
from eca_service.framing import FRAMING_BYTES
from eca_service.grpc_server import SERVICE, GrpcServer, Health, Inference
from eca_service.keys import make
from eca_service.peers import Peers
from eca_service.settings import MOST, Settings
from eca_service.triton.server import free_port
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.integration.callers import infer_request
from tests.load import noop
from tests.unit.made_triton import Server, serving

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.fixture
def core(tmp_path: Path) -> Core:
    """Has one model, which has not given its golden answers."""
    noop.publish(tmp_path)
    return Core(Settings(repository=tmp_path), Peers())


def be_golden(core: Core) -> None:
    core.readiness._reasons.clear()


@asynccontextmanager
async def answering(folder: Path, **settings: Any) -> AsyncIterator[tuple[Core, Server, Any]]:
    """The gateway's port, asked by the stub, in front of a server that answers each image with its first byte."""
    noop.publish(folder)
    async with serving() as (server, _):
        core = Core(Settings(repository=folder, triton_url=server.url, grpc_port=free_port(), **settings), Peers())
        await core.triton.fleet.look()
        core.triton.fleet.serving = frozenset({server.url})
        be_golden(core)
        port = GrpcServer(core)
        await port.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{core.settings.grpc_port}") as channel:
                yield core, server, service_pb2_grpc.GRPCInferenceServiceStub(channel)
        finally:
            await port.stop()
            await core.close()


def png(value: int) -> bytes:
    """An image of one value, of 150 kB."""
    out = io.BytesIO()
    Image.fromarray(np.full((noop.CROP, noop.CROP, 3), value, np.uint8)).save(out, "PNG", compress_level=0)
    return out.getvalue()


def records(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What was written down of requests."""
    return [record.fields for record in caplog.records if hasattr(record, "fields")]


async def refused(call: Any) -> tuple[str, str]:
    """Status and code of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await call
    return told.value.code().name, dict(told.value.trailing_metadata())["eca-code"]


async def test_images_are_answered_each_in_its_place(tmp_path: Path) -> None:
    async with answering(tmp_path) as (_, _, stub):
        raw, plain = (infer_request(noop.NAME, [png(3), png(5)], top_k=1) for _ in range(2))
        plain.inputs[0].contents.bytes_contents.extend([png(3), png(5)])
        plain.raw_input_contents.clear()
        for request in (raw, plain):
            request.id = "mine"
            answer = await stub.ModelInfer(request)
            assert (answer.model_name, answer.model_version, answer.id) == (noop.NAME, "1", "mine")
            found = dict(zip((output.name for output in answer.outputs), answer.raw_output_contents, strict=True))
            assert np.frombuffer(found["score"], "<f4").tolist() == [3, 5]


async def test_a_request_s_deadline_is_its_caller_s_or_the_service_s(tmp_path: Path) -> None:
    async with answering(tmp_path, deadline_ms=20_000) as (_, server, stub):
        await stub.ModelInfer(infer_request(noop.NAME, [png(3)]))
        await stub.ModelInfer(infer_request(noop.NAME, [png(3)]), timeout=9)
        whole, own = server.left_s
        assert own < 10 < whole < 21, "gRPC rounds up"


async def test_what_is_no_request_for_this_model_is_refused(tmp_path: Path) -> None:
    async with answering(tmp_path) as (core, server, stub):
        none, twice, more = (infer_request(noop.NAME, [png(3)]) for _ in range(3))
        del none.inputs[:]
        twice.inputs.append(twice.inputs[0])
        more.inputs[0].contents.bytes_contents.extend([png(3)] * 2)
        more.raw_input_contents.clear()
        for request in (none, twice, more):
            assert await refused(stub.ModelInfer(request)) == ("INVALID_ARGUMENT", "bad_request")
        core.readiness._reasons[core.registry.get(noop.NAME, None).folder] = "not asked yet"
        assert await refused(stub.ModelInfer(infer_request(noop.NAME, [png(3)]))) == ("UNAVAILABLE", "model_not_ready")
        assert not server.requests


async def test_a_message_that_is_too_large_has_its_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with answering(tmp_path, max_body_bytes=1 << 20) as (_, _, stub):
        request = infer_request(noop.NAME, [png(3) + bytes((1 << 20) + FRAMING_BYTES)])
        with caplog.at_level(logging.INFO):
            assert await refused(stub.ModelInfer(request)) == ("RESOURCE_EXHAUSTED", "body_too_large")
    assert [line["code"] for line in records(caplog)] == ["body_too_large"]


async def test_the_largest_limits_that_may_be_set_are_taken(tmp_path: Path) -> None:
    async with answering(tmp_path, max_body_bytes=MOST, max_head_bytes=MOST, max_inflight_bytes=2 * MOST) as (*_, stub):
        await stub.ModelInfer(infer_request(noop.NAME, [png(3)]))


async def test_what_was_done_to_an_image_is_told(tmp_path: Path) -> None:
    async with answering(tmp_path) as (_, _, stub):
        out = io.BytesIO()
        Image.fromarray(np.full((8, 8, 4), 100, np.uint8)).save(out, "PNG")
        answer = await stub.ModelInfer(infer_request(noop.NAME, [png(3), out.getvalue()]))
        told = json.loads(answer.parameters["warnings"].string_param)
        assert [bool(one) for one in told] == [False, True]
        assert not (await stub.ModelInfer(infer_request(noop.NAME, [png(3)]))).parameters


async def test_requests_are_counted_and_not_their_images(tmp_path: Path) -> None:
    async with answering(tmp_path) as (_, _, stub):
        await stub.ModelInfer(infer_request(noop.NAME, [png(3), png(5), b"none"]))
        await refused(stub.ModelInfer(infer_request(noop.NAME, [b"none"])))
        (row,) = (await stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name=noop.NAME))).model_stats
        counted = [getattr(row.inference_stats, name).count for name in ("success", "fail", "queue", "compute_infer")]
        assert (row.inference_count, counted) == (2, [1, 1, 1, 1])


async def test_the_bytes_of_all_messages_are_bounded(tmp_path: Path) -> None:
    async with answering(tmp_path, max_inflight_bytes=200_000) as (core, server, stub):
        server.answer.clear()
        first = asyncio.ensure_future(stub.ModelInfer(infer_request(noop.NAME, [png(3)])))
        await asyncio.wait_for(server.began.wait(), 10)
        refusal = await refused(stub.ModelInfer(infer_request(noop.NAME, [png(3)])))
        assert refusal == ("RESOURCE_EXHAUSTED", "overloaded")
        server.answer.set()
        await first
        assert core.admission.size == 0
        await stub.ModelInfer(infer_request(noop.NAME, [png(3)]))


async def test_a_caller_that_leaves_is_written_down_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with answering(tmp_path) as (core, server, stub):
            server.answer.clear()
            call = stub.ModelInfer(infer_request(noop.NAME, [png(3)]))
            await asyncio.wait_for(server.began.wait(), 10)
            call.cancel()
            assert await asyncio.wait_for(server.seen.get(), 10) == "cancelled"
            for _ in range(500):
                if not core.admission.requests:
                    break
                await asyncio.sleep(0.02)
            (line,) = records(caplog)
            assert (line["code"], line["status"], line["model"]) == ("client_closed", "CANCELLED", noop.NAME)


async def test_who_asks_whether_it_lives_needs_no_key_and_is_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret, line = make("team")
    (tmp_path / "keys").write_text(line)
    mine, asked = (("x-api-key", secret),), infer_request(noop.NAME, [png(3)])
    settings = {"api_keys_file": tmp_path / "keys", "rate_limit": 2, "max_inflight_images": 1}
    async with answering(tmp_path, **settings) as (_, server, stub):
        server.answer.clear()
        with caplog.at_level(logging.INFO):
            first = asyncio.ensure_future(stub.ModelInfer(asked, metadata=mine))
            await asyncio.wait_for(server.began.wait(), 10)
            for _ in range(3):
                assert (await stub.ServerLive(service_pb2.ServerLiveRequest())).live
            await stub.ServerMetadata(service_pb2.ServerMetadataRequest(), metadata=mine)
            server.answer.set()
            await first
        assert [(line["caller"], line["code"], line["status"]) for line in records(caplog)] == [
            ("team", "ok", "OK")
        ] * 2
        assert await refused(stub.ModelInfer(asked, metadata=mine)) == ("RESOURCE_EXHAUSTED", "rate_limited")
        assert await refused(stub.ModelInfer(asked)) == ("UNAUTHENTICATED", "unauthorized")


async def test_what_is_no_message_of_a_health_check_is_told(tmp_path: Path) -> None:
    async with (
        answering(tmp_path) as (core, _, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{core.settings.grpc_port}") as channel,
    ):
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert HealthCheckResponse.FromString(await check(b"")).status == SERVING
        assert await refused(check(b"\xff" * 40)) == ("INVALID_ARGUMENT", "bad_request")


async def test_every_answer_has_its_request_s_id_and_time(tmp_path: Path) -> None:
    async with answering(tmp_path) as (_, _, stub):
        mine = (("x-request-id", "mine"),)
        for call, known in (
            (stub.ModelInfer(infer_request(noop.NAME, [png(3)]), metadata=mine), ["decode", "queue", "infer", "total"]),
            (stub.ServerMetadata(service_pb2.ServerMetadataRequest(), metadata=mine), ["total"]),
        ):
            await call
            trailing = dict(await call.trailing_metadata())
            assert trailing["x-request-id"] == "mine"
            stages = [stage.partition(";dur=")[0] for stage in trailing["server-timing"].split(", ")]
            assert stages == known


async def test_what_is_not_there_is_written_down_like_all_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with answering(tmp_path) as (_, _, stub):
        with caplog.at_level(logging.INFO), pytest.raises(grpc.aio.AioRpcError) as told:
            async for _ in stub.ModelStreamInfer(iter([infer_request(noop.NAME, [png(3)])])):
                pass
        assert told.value.code() is grpc.StatusCode.UNIMPLEMENTED
        given = dict(told.value.trailing_metadata())["x-request-id"]
    (line,) = records(caplog)
    found = [line[name] for name in ("request_id", "route", "code", "status")]
    assert found == [given, f"{SERVICE}/ModelStreamInfer", "unimplemented", "UNIMPLEMENTED"]


async def test_a_method_that_nobody_knows_is_written_down_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with answering(tmp_path) as (core, _, _):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{core.settings.grpc_port}") as channel:
            call = channel.unary_unary("/nobody.Knows/This", None, None)
            with caplog.at_level(logging.INFO), pytest.raises(grpc.aio.AioRpcError) as told:
                await call(b"")
        assert told.value.code() is grpc.StatusCode.UNIMPLEMENTED
    (line,) = records(caplog)
    assert (line["route"], line["code"]) == ("nobody.Knows/This", "unimplemented")


async def test_a_method_whose_name_is_no_text_ends_nothing(tmp_path: Path) -> None:
    """In HTTP/2's own bytes (RFC 9113, RFC 7541), for no library of a client would send it."""
    fields = {b":method": b"POST", b":scheme": b"http", b":path": b"/\xff", b":authority": b"here"}
    fields |= {b"te": b"trailers", b"content-type": b"application/grpc"}
    head = b"".join(b"\0%c%b%c%b" % (len(name), name, len(value), value) for name, value in fields.items())
    settings, call = bytes(3) + b"\4" + bytes(5), len(head).to_bytes(3, "big") + b"\1\5\0\0\0\1"
    async with answering(tmp_path) as (core, _, stub):
        reader, writer = await asyncio.open_connection("127.0.0.1", core.settings.grpc_port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + call + head)
        answer = b""
        while b"grpc-status" not in answer:
            answer += await asyncio.wait_for(reader.read(1 << 16), 10)
        writer.close()
        assert (await stub.ServerLive(service_pb2.ServerLiveRequest())).live


async def test_a_model_is_ready_while_it_is_golden_and_the_service_stays(core: Core) -> None:
    port: Any = Inference(core)

    async def ready() -> tuple[bool, bool]:
        model = await port.ModelReady(service_pb2.ModelReadyRequest(name=noop.NAME), None)
        return model.ready, (await port.ServerReady(None, None)).ready

    assert await ready() == (False, False)
    be_golden(core)
    assert await ready() == (True, True)
    core.leaving = True
    assert await ready() == (False, False)


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_who_watches_is_told_of_each_change_and_of_the_end(core: Core, service: str) -> None:
    health: Any = Health(core)
    asked = HealthCheckRequest(service=service)
    watched = health.Watch(asked, None)
    told = [(await anext(watched)).status]
    later = asyncio.ensure_future(anext(watched))
    await asyncio.sleep(1)
    assert not later.done(), "nothing has changed"
    be_golden(core)
    told.append((await asyncio.wait_for(later, 10)).status)
    assert (await health.Check(asked, None)).status == SERVING
    core.leaving = True
    told += [answer.status async for answer in watched]
    assert told == [NOT_SERVING, SERVING, NOT_SERVING]


async def test_many_who_watch_cost_no_more_than_one(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may, with no key: thousands of streams each looked twice a second."""
    health: Any = Health(core)
    looks = 0

    def ready(_: Core) -> bool:
        nonlocal looks
        looks += 1
        return bool(core.readiness.ready)

    watched = [health.Watch(HealthCheckRequest(), None) for _ in range(100)]
    for one in watched:
        await anext(one)
    later = [asyncio.ensure_future(anext(one)) for one in watched]
    await asyncio.sleep(0.1)
    later.pop().cancel()
    with monkeypatch.context() as patch:
        patch.setattr(Core, "ready", property(ready))
        await asyncio.sleep(1)
    assert 0 < looks < 10
    be_golden(core)
    assert {answer.status for answer in await asyncio.wait_for(asyncio.gather(*later), 10)} == {SERVING}


async def test_who_watches_what_there_is_not_is_told_so_also_at_the_end(core: Core) -> None:
    core.leaving = True
    watched = Health(core).Watch(HealthCheckRequest(service="another"), None)
    assert {answer.status async for answer in watched} == {HealthCheckResponse.SERVICE_UNKNOWN}
