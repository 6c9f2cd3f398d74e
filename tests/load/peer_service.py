"""The peer: the FastAPI service that one would write for the purpose in an afternoon.

    python -m tests.load.peer_service MODEL.onnx LABELS.txt --port 9000 --workers 2

JPEG in, top-5 JSON out; Pillow's reference preprocessing, onnxruntime on one thread a worker, work in FastAPI's own
thread pool. It has no limits, no deadlines, no batching and no metrics. It imports nothing of ours.
"""

from __future__ import annotations

import argparse
import io
import os
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from numpy.typing import NDArray
from PIL import Image
from starlette.concurrency import run_in_threadpool

RESIZE, CROP = 256, 224


def session(path: str, threads: int) -> onnxruntime.InferenceSession:
    """The engine on so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def pixels(body: bytes) -> NDArray[np.uint8]:
    """The reference recipe: shorter side 256, bilinear with antialiasing, centre 224; uint8 [224, 224, 3]."""
    image = Image.open(io.BytesIO(body)).convert("RGB")
    scale = RESIZE / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - CROP) // 2, (height - CROP) // 2
    return np.asarray(image.crop((left, top, left + CROP, top + CROP)))


def create() -> FastAPI:
    """One worker's application."""
    app = FastAPI()
    engine = session(os.environ["PEER_MODEL"], int(os.environ["PEER_THREADS"]))
    with open(os.environ["PEER_LABELS"]) as file:
        labels = file.read().splitlines()

    def classify(body: bytes) -> dict[str, Any]:
        scores = engine.run(["probabilities"], {"image": pixels(body)[None]})[0][0]
        best = np.argsort(scores)[::-1][:5]
        return {"predictions": [{"index": int(i), "label": labels[i], "score": float(scores[i])} for i in best]}

    @app.post("/classify")
    async def route(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(classify, await request.body())

    return app


def main() -> None:
    """Answers until it is told to end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an ONNX file")
    parser.add_argument("labels", help="a file with a class name per line")
    parser.add_argument("--port", type=int, default=9000, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of each worker's engine; default: %(default)s")
    given = parser.parse_args()
    os.environ |= {"PEER_MODEL": given.model, "PEER_LABELS": given.labels, "PEER_THREADS": str(given.threads)}
    uvicorn.run(
        "tests.load.peer_service:create", factory=True, port=given.port, workers=given.workers, log_level="warning"
    )


if __name__ == "__main__":
    main()
