"""Both backends in the real Triton: many requests at once, and requests that the engine fails at."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from eca_service.triton import native
from eca_service.triton.failures import passes, translated
from eca_service.triton.supervisor import TritonServer
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from tests.load.processor import tree
from tests.ports import free_port

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
FENCE = "dynamic_batching { max_queue_delay_microseconds: 500000 default_queue_policy { max_queue_size: 4 } }"
# the runtime is onnxruntime, whatever else stands in it
CONTRACT = {
    "labels": ['"runtime": "openvino"', '\\"runtime\\": \\"openvino\\"'],
    "choice": {"runtime": "openvino", "candidates": [{"runtime": "openvino", "precision": "int8"}]},
    "engine": "runtime",
    "precision": "openvino",
    "runtime": None,
}


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


@pytest.fixture(
    scope="module", params=[(backend, threads) for backend in ("compiled", "python") for threads in (1, 3)], ids=str
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """With the models `table` and `broken`, in either backend."""
    backend, threads = request.param
    folder = tmp_path_factory.mktemp("backend")
    for name, engine in (("table", model()), ("broken", b"no engine"), ("contracted", model()), ("fenced", model())):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.onnx").write_bytes(engine)
        (folder / name / "config.pbtxt").write_text(CONFIG)
    (folder / "fenced" / "config.pbtxt").write_text(re.sub(r"dynamic_batching .*", FENCE, CONFIG))
    (folder / "contracted" / "1" / "contract.json").write_text(json.dumps(CONTRACT))
    server = TritonServer(folder, free_port(), folder.parent / f"{backend}{threads}.log", threads=threads)
    with pytest.MonkeyPatch.context() as patch:
        if backend == "python":
            patch.setenv("CXX", "")
        else:
            require_compiled()
        server.start()
    try:
        yield server
    finally:
        server.stop()


def require_compiled() -> None:
    """Skips where the backend cannot be compiled."""
    try:
        native.library()
    except native.NotCompiled as error:
        pytest.skip(f"needs a C++ compiler: {error}")


@pytest.fixture(scope="module")
def triton(server: TritonServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.address) as client:
        end = time.monotonic() + 60
        while not _live(client):
            assert time.monotonic() < end
            time.sleep(0.1)
        client.load_model("table")
        yield client


def _live(client: InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_live())
    except InferenceServerException:
        return False


def ask(
    client: InferenceServerClient, values: list[int], output: str = "probabilities", name: str = "table"
) -> list[float]:
    """What the engine answers to an image for each of `values`."""
    images = np.zeros((len(values), 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = values
    tensor = InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    answer = client.infer(name, [tensor], outputs=[InferRequestedOutput(output)], client_timeout=30)
    return [float(value) for value in answer.as_numpy(output)[:, 0]]


def test_the_python_backend_s_folder_goes_with_the_server_s(
    request: pytest.FixtureRequest, server: TritonServer, triton: InferenceServerClient
) -> None:
    """It makes one for its environments, used or not, which stays where the server is killed."""
    running = Path(f"/proc/{server.pid}/cwd").readlink()
    assert running.parent.name.startswith("eca-triton-"), "what is removed with the server"
    assert len(list(running.glob("python_env_*"))) == (request.node.callspec.params["server"][0] == "python")


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


def test_each_is_the_backend_that_it_is_meant_to_be(
    server: TritonServer, triton: InferenceServerClient, request: pytest.FixtureRequest
) -> None:
    """The compiled one runs in Triton's own process, the other in processes below it."""
    backend, _ = request.node.callspec.params["server"]
    assert server.pid is not None
    assert len(list(tree(server.pid))) == (1 if backend == "compiled" else 2)


def test_what_is_no_image_is_refused(triton: InferenceServerClient) -> None:
    tensor = InferInput("image", [1, 2, 2, 2], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, 2, 2, 2), np.uint8))
    with pytest.raises(InferenceServerException, match="image"):
        triton.infer("table", [tensor])
    assert ask(triton, [7]) == [14.0]


def test_counts_are_kept(triton: InferenceServerClient) -> None:
    """Triton's own statistics, which its tools read; a request is counted once it is answered."""

    def inferences(before: int = 0) -> int:
        """How many, once there are more than before and it stays so."""
        end, counts = time.monotonic() + 10, [before]
        while time.monotonic() < end and (counts[-1] == before or len(set(counts[-5:])) > 1):
            time.sleep(0.05)
            statistics = triton.get_inference_statistics("table", as_json=True)["model_stats"][0]
            counts.append(int(statistics.get("inference_count", 0)))
        assert int(statistics["inference_stats"]["compute_infer"]["ns"]) > 0
        return counts[-1]

    ask(triton, [1])
    before = inferences()
    ask(triton, [1, 2, 3, 4, 5])
    assert inferences(before) - before == 5


def test_an_engine_that_is_none_is_not_loaded(triton: InferenceServerClient) -> None:
    """And it says why."""
    with pytest.raises(InferenceServerException, match=r"(?i)protobuf"):
        triton.load_model("broken")
    assert ask(triton, [7]) == [14.0]


def test_the_contract_s_own_runtime_counts(triton: InferenceServerClient) -> None:
    """OpenVINO would answer what onnxruntime fails at."""
    triton.load_model("contracted")
    assert ask(triton, [7], name="contracted") == [14.0]
    with pytest.raises(InferenceServerException, match="the engine failed"):
        ask(triton, [KNOWN + 1], name="contracted")


def test_more_than_may_wait_are_refused_as_overload(triton: InferenceServerClient) -> None:
    """Triton's queue is bounded by the model's configuration; what it refuses says nothing against the model."""
    triton.load_model("fenced")

    def outcome(value: int) -> object:
        try:
            return ask(triton, [value], name="fenced")
        except InferenceServerException as error:
            return translated(error, "fenced").code, passes(error)

    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(outcome, range(12)))
    answered = [outcome == [2.0 * value] for value, outcome in enumerate(outcomes)]
    assert 4 <= sum(answered) < 12
    assert outcomes.count(("overloaded", True)) == 12 - sum(answered)


def test_a_model_can_go_and_come_back_under_load(triton: InferenceServerClient) -> None:
    """Nothing is lost, nobody waits for ever: each caller is answered, or told that the model is not there."""
    answered, enough = threading.Semaphore(0), threading.Event()

    def calls(first: int) -> list[tuple[int, object]]:
        """Until it is enough: who is refused is so at once, and would be through before the model is back."""
        found: list[tuple[int, object]] = []
        for value in itertools.takewhile(lambda _: not enough.is_set(), itertools.cycle(range(first, KNOWN, 8))):
            try:
                found.append((value, ask(triton, [value] * 5)))
                answered.release()
            except InferenceServerException as error:
                found.append((value, error.message()))
        return found

    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(calls, first) for first in range(8)]
        try:
            for _ in range(3):
                while answered.acquire(blocking=False):
                    pass
                for _ in range(9):  # one more than were on their way
                    assert answered.acquire(timeout=60), "answers come"
                triton.unload_model("table")
                triton.load_model("table")
        finally:
            enough.set()
        answers = [pair for caller in callers for pair in caller.result(60)]
    for value, answer in answers:
        assert answer == [2.0 * value] * 5 or re.search("not ready|not found|no available version", str(answer)), answer
    assert ask(triton, [7]) == [14.0]
