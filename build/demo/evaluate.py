"""Accuracy on CIFAR-10's test images through a running service, beside PyTorch's and the engine's on the same images.

    python build/demo/evaluate.py --data cifar10-jpeg.tar.xz --url http://127.0.0.1:8080

For each demo network that is served it prints how many images are right through the service and in PyTorch, and on
how many the two disagree. A float32 engine must agree with PyTorch on every image; another one with itself, run from
its file in a process of its own, and its accuracy must be within half a point of PyTorch's. Exit code 1 where any of
this fails.
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
from eca_build import verify
from eca_build.checkpoint import load as load_checkpoint
from eca_build.export import reference
from eca_build.recipes import default_recipe
from eca_build.targets import kind_of
from eca_service.contract import Contract, read
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).parent
BATCH = 50
MOST_LOST = 0.005  # of the accuracy


def png(pixels: NDArray[np.uint8]) -> str:
    """Base64 of a lossless file of uint8 [32, 32, 3], so that the service sees the same pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def served(client: httpx.Client, model: str, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The service's best class for each of uint8 [N, 32, 32, 3]; exits with a sentence where it stops to answer."""
    best: list[int] = []
    for start in tqdm(range(0, len(images), BATCH), desc=model, disable=None):
        body = {"images": [{"b64": png(pixels)} for pixels in images[start : start + BATCH]]}
        try:
            answer = client.post(f"/v1/models/{model}/classify", params={"top_k": 1}, json=body).raise_for_status()
        except httpx.HTTPError as error:
            told = f"after {start} of the {len(images)} images of {model} the service at {client.base_url} failed"
            sys.exit(f"evaluate: {told} ({str(error) or type(error).__name__}); its log says why")
        best += [row["predictions"][0]["index"] for row in answer.json()["results"]]
    return np.asarray(best)


def own(contract: Contract, folder: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The probabilities [N, K] that the version's engine gives without the service."""
    engine = next(path for path in folder.iterdir() if path.name.startswith("model."))
    return verify.answers(engine, images, verify.runner(kind_of(contract.engine, contract.runtime), contract.precision))


def served_engines(client: httpx.Client) -> dict[str, tuple[str, str]]:
    """Version and engine's sha256 as served, by the model's name; exits with a sentence where no demo network is."""
    try:
        listed = client.get("/v1/models").raise_for_status().json()["models"]
    except httpx.HTTPError as error:
        sys.exit(f"evaluate: the service at {client.base_url} cannot be asked ({error}); `make serve` starts one")
    engines = {model["name"]: (str(model["version"]), model["engine_sha256"]) for model in listed}
    if not any((HERE / f"{name}.safetensors").exists() for name in engines):
        sys.exit(f"evaluate: the service at {client.base_url} has no demo network; `make serve` builds and serves them")
    return engines


def published(folder: Path, sha256: str) -> Contract:
    """The contract of the version in `folder`; exits with a sentence where that is not the engine of `sha256`."""
    if not folder.exists() or (contract := read(folder)).engine_sha256 != sha256:
        sys.exit(f"evaluate: {folder} is not what the service serves; name its repository by --repository")
    return contract


def main() -> int:
    """Runs the comparison; see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10: an archive or an unpacked folder")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the service; default: %(default)s")
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path("model_repository"),
        help="what the service serves; default: %(default)s",
    )
    options = parser.parse_args()
    _, _, images, labels = load(options.data)
    failed = 0
    with httpx.Client(base_url=options.url, timeout=60) as client:
        engines = served_engines(client)
        for weights in sorted(path for path in HERE.glob("*.safetensors") if path.stem in engines):
            name, (version, sha256) = weights.stem, engines[weights.stem]
            folder = options.repository / name / version
            contract = published(folder, sha256)
            through = served(client, name, images)
            checkpoint = load_checkpoint(weights)
            recipe = default_recipe(checkpoint.spec.arch)
            expected = reference(checkpoint.network, recipe, torch.from_numpy(images), 250).argmax(1).numpy()
            differ = int((through != expected).sum())
            right = [int((best == labels).sum()) for best in (through, expected)]
            line = f"{name}, {contract.runtime or contract.engine} {contract.precision}: {right[0]} of {len(labels)} "
            line += f"right served, {right[1]} in PyTorch, {differ} differ"
            wrong = bool(differ)
            if contract.precision != "fp32":
                alone = own(contract, folder, images).argmax(1)
                drift = int((through != alone).sum())
                lost = (right[1] - right[0]) / len(labels)
                line += f", {drift} from the engine by itself; {100 * lost:+.2f} points lost"
                wrong = bool(drift) or lost > MOST_LOST
            failed += wrong
            print(line + ("  WRONG" if wrong else ""), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
