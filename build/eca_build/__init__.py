"""The build step: from a trained checkpoint to a verified engine in a model repository."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime's wheels report to their maker unless told not to
