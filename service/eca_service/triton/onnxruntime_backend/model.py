"""A Python-based Triton backend named `onnxruntime`: serves model.onnx where the native backend is not to be had.

The same model repository runs unchanged under NVIDIA's container, whose native backend has the same name.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# Triton's stub ignores PYTHONPATH.
for _path in os.environ.get("ECA_SITE_PACKAGES", "").split(os.pathsep):
    if _path and _path not in sys.path:
        sys.path.append(_path)

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of one model version."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens `<model>/<version>/model.onnx`; threads come from ECA_TRITON_THREADS."""
        config = json.loads(args["model_config"])
        self.input = config["input"][0]["name"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("ECA_TRITON_THREADS", "1"))
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Spinning threads would take the cores that the gateway decodes on.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One run over the rows of all requests that want the same outputs; whose caller has gone is left out."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[str, ...], list[int]] = {}
        for index, request in enumerate(requests):
            if request.is_cancelled():
                gone = pb_utils.TritonError("the caller has gone", pb_utils.TritonError.CANCELLED)
                responses[index] = pb_utils.InferenceResponse(error=gone)
                continue
            groups.setdefault(tuple(request.requested_output_names()), []).append(index)
        for names, indices in groups.items():
            rows = [pb_utils.get_input_tensor_by_name(requests[index], self.input).as_numpy() for index in indices]
            for index, response in zip(indices, self._answer(names, rows), strict=True):
                responses[index] = response
        return responses

    def _answer(self, names: tuple[str, ...], rows: list[Any]) -> list[Any]:
        """A response for each entry of `rows`; where the merged run fails, each runs alone and fails alone."""
        try:
            outputs = self.session.run(list(names), {self.input: np.concatenate(rows)})
        except Exception as error:  # the runtime's errors have no common class
            if len(rows) > 1:
                return [self._answer(names, [part])[0] for part in rows]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(f"onnxruntime: {error}"))]
        ends = np.cumsum([len(part) for part in rows])[:-1]
        parts = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(names, part, strict=True)])
            for part in parts
        ]
