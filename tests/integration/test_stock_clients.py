"""Clients that know nothing of ours: tritonclient as it is installed, and what gRPC tools ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.integration.conftest import MODEL, Service, golden_png


@pytest.fixture(scope="module")
def service(undisturbed: Service) -> Service:
    """Nothing here disturbs it."""
    return undisturbed


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_stock_clients(service: Service, repository: Path, module: object) -> None:
    """tritonclient as it is installed, with compression, against the gateway."""
    port = service.url.rpartition(":")[2] if module is triton_http else service.grpc_port
    image = golden_png(repository, MODEL)
    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:  # type: ignore[attr-defined]
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.is_model_ready(MODEL, "1")
        as_json = {} if module is triton_http else {"as_json": True}
        assert client.get_server_metadata(**as_json)["name"] == "eca-serve"
        metadata = client.get_model_metadata(MODEL, **as_json)
        assert [output["name"] for output in metadata["outputs"]] == ["label", "index", "score"]
        config = client.get_model_config(MODEL, **as_json)
        assert config.get("config", config)["name"] == MODEL
        if module is triton_http:
            assert config["input"][0]["dims"] == [-1], "numbers are numbers, as Triton has them"
        given = module.InferInput("image", [2], "BYTES")  # type: ignore[attr-defined]
        given.set_data_from_numpy(np.array([image, image], object))
        wanted = [module.InferRequestedOutput(name) for name in ("score", "label")]  # type: ignore[attr-defined]
        packing = {"compression_algorithm": "gzip"}
        if module is triton_http:
            packing = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
        answer = client.infer(MODEL, [given], outputs=wanted, request_id="mine", parameters={"top_k": 4}, **packing)
        assert answer.as_numpy("score").shape == answer.as_numpy("label").shape == (2, 4)
        assert answer.as_numpy("index") is None
        response = answer.get_response(**as_json)
        assert response["id"] == "mine"
        for version in ("", "1"):
            stats = client.get_inference_statistics(MODEL, version, **as_json)
            (row,) = stats["model_stats"]
            assert (row["name"], int(row["inference_count"]) >= 2) == (MODEL, True)


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_what_triton_has_and_the_service_has_not_is_told(service: Service, repository: Path, module: Any) -> None:
    port = service.url.rpartition(":")[2] if module is triton_http else service.grpc_port
    given, elsewhere = (module.InferInput("image", [1], "BYTES") for _ in range(2))
    given.set_data_from_numpy(np.array([golden_png(repository, MODEL)], object))
    elsewhere.set_shared_memory("region", 100)
    named, mapped = module.InferRequestedOutput("score", class_count=2), module.InferRequestedOutput("score")
    mapped.set_shared_memory("region", 100)
    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        for image, output, words in (
            (given, named, "score asks for Triton's classification"),
            (given, mapped, "score asks for shared memory"),
            (elsewhere, None, "image asks for shared memory"),
        ):
            with pytest.raises(InferenceServerException, match=f"bad_parameter: {words}"):
                client.infer(MODEL, [image], outputs=output and [output])


def test_health_and_reflection(service: Service) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watched = health.Watch(health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService"))
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        watched.cancel()
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(model_name=MODEL))
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED, "nothing can be managed from outside"
