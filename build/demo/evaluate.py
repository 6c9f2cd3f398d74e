"""Accuracy on CIFAR-10's test images through a running service, beside PyTorch's on the same images.

    python build/demo/evaluate.py --data cifar10-jpeg.tar.xz --url http://127.0.0.1:8080

Prints both counts for each demo network and on how many images the two disagree; exit code 1 where they do anywhere.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from pathlib import Path

import httpx
import numpy as np
import torch
from cifar10 import load
from eca_build.checkpoint import load as load_checkpoint
from eca_build.compile import default_recipe
from eca_build.export import reference
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).parent
BATCH = 50


def png(pixels: NDArray[np.uint8]) -> str:
    """Base64 of a lossless file of uint8 [32, 32, 3], so that the service sees the same pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def served(client: httpx.Client, model: str, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The service's best class for each of uint8 [N, 32, 32, 3]."""
    best: list[int] = []
    for start in tqdm(range(0, len(images), BATCH), desc=model, disable=None):
        body = {"images": [{"b64": png(pixels)} for pixels in images[start : start + BATCH]]}
        answer = client.post(f"/v1/models/{model}/classify", params={"top_k": 1}, json=body).raise_for_status()
        best += [row["predictions"][0]["index"] for row in answer.json()["results"]]
    return np.asarray(best)


def main() -> int:
    """Runs the comparison; see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10: an archive or an unpacked folder")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    options = parser.parse_args()
    _, _, images, labels = load(options.data)
    differences = 0
    with httpx.Client(base_url=options.url, timeout=60) as client:
        for weights in sorted(HERE.glob("*.safetensors")):
            through = served(client, weights.stem, images)
            checkpoint = load_checkpoint(weights)
            recipe = default_recipe(checkpoint.spec.arch)
            torch_best = reference(checkpoint.network, recipe, torch.from_numpy(images), 250).argmax(1).numpy()
            differ = int((through != torch_best).sum())
            differences += differ
            right = [int((best == labels).sum()) for best in (through, torch_best)]
            print(f"{weights.stem}: {right[0]} of {len(labels)} right served, {right[1]} in PyTorch, {differ} differ")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
