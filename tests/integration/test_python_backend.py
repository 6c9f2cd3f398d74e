"""The Python backend in the real Triton: many requests at once, and requests that the engine fails at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from eca_service.triton.supervisor import TritonServer
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

KNOWN = 200  # values that the engine knows; at others it fails
CONFIG = """backend: "onnxruntime"
max_batch_size: 16
input [ { name: "image" data_type: TYPE_UINT8 dims: [ 2, 2, 3 ] } ]
output [
  { name: "probabilities" data_type: TYPE_FP32 dims: [ 1 ] },
  { name: "features" data_type: TYPE_FP32 dims: [ 1 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
dynamic_batching { max_queue_delay_microseconds: 20000 }
"""


def model() -> bytes:
    """Probabilities are twice the value of an image's first byte, features three times."""
    tables = {name: factor * np.arange(KNOWN, dtype=np.float32) for name, factor in (("a", 2), ("b", 3))}
    ends = {"starts": [0, 0, 0], "ends": [1, 1, 1], "axes": [1, 2, 3], "row": [-1, 1]}
    constants = [numpy_helper.from_array(table, name) for name, table in tables.items()]
    constants += [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in ends.items()]
    nodes = [
        helper.make_node("Slice", ["image", "starts", "ends", "axes"], ["corner"]),
        helper.make_node("Reshape", ["corner", "row"], ["byte"]),
        helper.make_node("Cast", ["byte"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["a", "index"], ["probabilities"]),
        helper.make_node("Gather", ["b", "index"], ["features"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 2, 2, 3])
    answers = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in ("probabilities", "features")
    ]
    graph = helper.make_graph(nodes, "table", [image], answers, constants)
    raw: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    onnx.checker.check_model(raw)
    return raw


@pytest.fixture(scope="module", params=[1, 3])
def triton(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceServerClient]:
    folder = tmp_path_factory.mktemp("table")
    (folder / "table" / "1").mkdir(parents=True)
    (folder / "table" / "1" / "model.onnx").write_bytes(model())
    (folder / "table" / "config.pbtxt").write_text(CONFIG)
    server = TritonServer(folder, 0, folder.parent / f"table{request.param}.log", threads=request.param)
    server.start()
    try:
        with InferenceServerClient(server.address) as client:
            end = time.monotonic() + 60
            while not _live(client):
                assert time.monotonic() < end
                time.sleep(0.1)
            client.load_model("table")
            yield client
    finally:
        server.stop()


def _live(client: InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_live())
    except InferenceServerException:
        return False


def ask(client: InferenceServerClient, values: list[int], output: str = "probabilities") -> list[float]:
    """What the engine answers to an image for each of `values`."""
    images = np.zeros((len(values), 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = values
    tensor = InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    answer = client.infer("table", [tensor], outputs=[InferRequestedOutput(output)], client_timeout=30)
    return [float(value) for value in answer.as_numpy(output)[:, 0]]


def test_each_caller_is_answered_its_own_rows(triton: InferenceServerClient) -> None:
    chance = np.random.default_rng(0)
    requests = [chance.integers(0, KNOWN, chance.integers(1, 17)).tolist() for _ in range(200)]
    outputs = [("probabilities", 2.0), ("features", 3.0)] * 100
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda pair: ask(triton, pair[0], pair[1][0]), zip(requests, outputs, strict=True)))
    for values, (_, factor), answer in zip(requests, outputs, answers, strict=True):
        assert answer == [factor * value for value in values]


def test_who_makes_the_engine_fail_fails_alone(triton: InferenceServerClient) -> None:
    """Requests that came at once run as one batch, whose failure is nobody else's."""
    requests = [[value, KNOWN + 1] if value % 4 == 0 else [value] * (1 + value % 5) for value in range(100)]

    def outcome(values: list[int]) -> object:
        try:
            return ask(triton, values)
        except InferenceServerException as error:
            return error.message()

    with ThreadPoolExecutor(12) as pool:
        for values, answer in zip(requests, pool.map(outcome, requests), strict=True):
            if KNOWN + 1 in values:
                assert str(answer).startswith("the engine failed: ")
            else:
                assert answer == [2.0 * value for value in values]
    assert ask(triton, [7]) == [14.0]
