"""A model that costs nothing: one pixel of each image through a softmax, served like any other by the real Triton.

Or one that costs time and no processor: its engine sleeps for each image, so that its capacity is the same on a machine
that does much else.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from eca_service import triton
from eca_service.contract import CONTRACT_FILE, GOLDEN_FILE, Contract, Golden, Preprocessing, Verification
from onnx import TensorProto, helper, numpy_helper

NAME = "noop"
CROP = 224
CLASSES = 10
CONFIG = """name: "{name}"
backend: "{backend}"
max_batch_size: {max_batch}
input [ {{ name: "image" data_type: TYPE_UINT8 dims: [ {crop}, {crop}, 3 ] }} ]
output [ {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {classes} ] }} ]
instance_group [ {{ count: {instances} kind: KIND_CPU }} ]
dynamic_batching {{ }}
version_policy {{ latest {{ num_versions: 2 }} }}
"""
PACED = """
import os, sys, time
sys.path += [path for path in os.environ.get("ECA_SITE_PACKAGES", "").split(os.pathsep) if path not in sys.path]
import numpy as np
import triton_python_backend_utils as pb_utils
from .tensors import array_of, tensor_of

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            rows = len(array_of(pb_utils.get_input_tensor_by_name(request, "image")))
            time.sleep(rows * {pace_s})
            answer = np.full((rows, {classes}), 1 / {classes}, np.float32)
            responses.append(pb_utils.InferenceResponse([tensor_of("probabilities", answer)]))
        return responses
"""


def publish(
    repository: Path, max_batch: int = 32, crop: int = CROP, pace_s: float | None = None, instances: int = 1
) -> Contract:
    """Writes the model into `repository` and returns its contract; golden.npy holds four images of noise.

    With `pace_s` its engine sleeps for so long for each image, and answers all classes alike.
    """
    weight = numpy_helper.from_array(np.linspace(-0.01, 0.01, 3 * CLASSES, dtype=np.float32).reshape(3, CLASSES), "w")
    ends = [
        ("starts", [0, 0]),
        ("ends", [1, 1]),
        ("axes", [1, 2]),
    ]
    constants = [weight, numpy_helper.from_array(np.array([-1, 3], np.int64), "row")]
    constants += [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in ends]
    nodes = [
        helper.make_node("Slice", ["image", "starts", "ends", "axes"], ["corner"]),
        helper.make_node("Reshape", ["corner", "row"], ["pixel"]),
        helper.make_node("Cast", ["pixel"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["values", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", crop, crop, 3])
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", CLASSES])
    graph = helper.make_graph(nodes, NAME, [image], [answer], constants)
    raw = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    onnx.checker.check_model(raw)

    images = np.random.default_rng(0).integers(0, 256, (4, crop, crop, 3), np.uint8)
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    probabilities = np.asarray(session.run(["probabilities"], {"image": images})[0])
    if pace_s:
        probabilities = np.full((4, CLASSES), 1 / CLASSES, np.float32)
    golden = io.BytesIO()
    np.save(golden, images)
    recipe, sha = Preprocessing(resize=crop, crop=crop), hashlib.sha256(raw).hexdigest()
    contract = Contract(
        name=NAME,
        version=1,
        architecture="noop",
        attention="none",
        kernel_sizes=(),
        classes=CLASSES,
        labels=tuple(f"class {index}" for index in range(CLASSES)),
        preprocessing=recipe,
        preprocessing_fingerprint=recipe.fingerprint,
        outputs=("probabilities",),
        features_shape=(1, 1, 1),
        precision="fp32",
        engine="onnx",
        max_batch=max_batch,
        parameters=3 * CLASSES,
        flops=6 * CLASSES,
        build_key=sha,
        checkpoint_sha256=sha,
        onnx_sha256=sha,
        engine_sha256=sha,
        tools={"onnx": onnx.__version__},
        verification=Verification(source="noise", images=4, top1_agreement=1, largest_difference=0, tolerance=1e-4),
        golden=Golden(
            sha256=hashlib.sha256(golden.getvalue()).hexdigest(),
            probabilities=tuple(map(tuple, probabilities.tolist())),
            tolerance=1e-4,
        ),
    )
    folder = repository / NAME / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(raw)
    if pace_s:
        shutil.copy2(Path(triton.__path__[0], "python_backend", "tensors.py"), folder)
        (folder / "model.py").write_text(PACED.format(pace_s=pace_s, classes=CLASSES))
    (folder / GOLDEN_FILE).write_bytes(golden.getvalue())
    (folder / CONTRACT_FILE).write_text(contract.model_dump_json(indent=1))
    backend = "python" if pace_s else "onnxruntime"
    text = CONFIG.format(
        name=NAME, backend=backend, max_batch=max_batch, crop=crop, classes=CLASSES, instances=instances
    )
    (folder.parent / "config.pbtxt").write_text(text)
    return contract
