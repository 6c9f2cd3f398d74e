"""The build: checkpoint -> ONNX -> verified in a new process -> published."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from eca_service.contract import (
    CONTRACT_FILE,
    GOLDEN_FILE,
    Contract,
    ContractError,
    Golden,
    Head,
    Preprocessing,
    Verification,
    read,
)
from numpy.typing import NDArray

from eca_build import checkpoint, cost, images, lowering, verify
from eca_build.errors import BuildError
from eca_build.export import export, reference
from eca_build.graphs import AttentionGraph
from eca_build.publish import CONFIG_FILE, LABELS_FILE, publish, staging, versions
from eca_build.triton_config import config

ENGINE_FILE = "model.onnx"
TOLERANCE = 1e-5
GOLDEN_IMAGES = 4
STEPS = ("read the checkpoint", "export to ONNX", "verify in a new process", "publish")


@dataclass(frozen=True)
class Options:
    """What the user asked for; see `eca-build compile --help`."""

    checkpoint: Path
    repository: Path
    size: tuple[int, int] | None = None  # of the resize and of the crop, in pixels
    name: str | None = None
    arch: str | None = None
    labels: Path | None = None
    images: Path | None = None
    max_batch: int = 32
    attention_graph: AttentionGraph = "plain"


@dataclass(frozen=True)
class Built:
    """A published version; `changed` is false where the repository already held the result of the same inputs."""

    folder: Path
    contract: Contract
    changed: bool


def compile_checkpoint(options: Options, step: Callable[[str], None]) -> Built:
    """Builds, verifies and publishes one version; `step` is told the name of each step as it begins.

    Raises BuildError, with nothing published, for everything that can be wrong with the inputs or the result.
    """
    step(STEPS[0])
    loaded = checkpoint.load(options.checkpoint, arch=options.arch)
    recipe = default_recipe(loaded.spec.arch)
    if options.size:
        recipe = recipe.model_copy(update={"resize": options.size[0], "crop": options.size[1]})
    name = options.name or default_name(options.checkpoint)
    labels = read_labels(options.labels, loaded.spec.classes)
    if options.images:
        sample, source = images.load(options.images, recipe), f"{options.images.name}/"
    else:
        sample, source = images.synthetic(recipe.crop), "synthetic images with the spectrum of photographs"
    tools = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    key = build_key(loaded.sha256, recipe, labels, sample, tools, options)
    with staging(options.repository) as staged:
        published = versions(options.repository, name)
        if published:
            folder = options.repository / name / str(published[-1])
            try:
                newest = read(folder)
                if newest.build_key == key:
                    return Built(folder, newest, changed=False)
            except ContractError:
                pass  # what cannot be read cannot be the same; a sound version is published beside it
        version = (published or [0])[-1] + 1
        home = staged / str(version)
        home.mkdir()
        engine = home / ENGINE_FILE
        step(STEPS[1])
        sites = export(loaded.network, recipe, engine, options.attention_graph)
        lowering.lower_file(engine)
        step(STEPS[2])
        expected = reference(loaded.network, recipe, torch.from_numpy(sample)).numpy()
        got = verify.answers(engine, sample)
        figures = verify.compare(expected, got, TOLERANCE, source)
        step(STEPS[3])
        np.save(home / GOLDEN_FILE, sample[:GOLDEN_IMAGES])
        with torch.inference_mode():
            features = loaded.network.feature_map(torch.zeros(1, 3, recipe.crop, recipe.crop)).shape[1:]
        engine_sha256 = _sha256(engine)
        contract = Contract(
            name=name,
            version=version,
            architecture=loaded.spec.arch,
            attention=loaded.spec.attention,
            kernel_sizes=loaded.spec.sizes if loaded.spec.attention == "eca" else (),
            classes=loaded.spec.classes,
            labels=labels,
            preprocessing=recipe,
            preprocessing_fingerprint=recipe.fingerprint,
            features_shape=(features[0], features[1], features[2]),
            precision="fp32",
            engine="onnx",
            attention_graph=options.attention_graph,
            sites_rewritten=sites,
            max_batch=options.max_batch,
            parameters=cost.parameters(loaded.network),
            flops=cost.flops(loaded.network, recipe.crop),
            build_key=key,
            checkpoint_sha256=loaded.sha256,
            onnx_sha256=engine_sha256,
            engine_sha256=engine_sha256,
            tools=tools,
            verification=figures,
            golden=_golden(home / GOLDEN_FILE, got, figures),
            head=_head(loaded.network.head),
        )
        (home / CONTRACT_FILE).write_text(contract.model_dump_json(indent=1) + "\n")
        (staged / LABELS_FILE).write_text("\n".join(labels) + "\n")
        (staged / CONFIG_FILE).write_text(config(contract))
        folder = publish(staged, options.repository, name, version)
    return Built(folder, contract, changed=True)


def default_recipe(arch: str) -> Preprocessing:
    """ImageNet's recipe, or CIFAR's for the networks made for 32 x 32 pixels."""
    if not arch.endswith("_cifar"):
        return Preprocessing()
    return Preprocessing(resize=32, crop=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def default_name(path: Path) -> str:
    """The file's name without its suffixes."""
    name = path.name
    for suffix in (".pth.tar", ".safetensors", ".pth", ".pt"):
        name = name.removesuffix(suffix)
    return name


def read_labels(path: Path | None, classes: int) -> tuple[str, ...]:
    """One label a line, as many as there are classes, else BuildError; without a file, numbered ones."""
    if path is None:
        return tuple(f"class {index}" for index in range(classes))
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"the labels file {path} cannot be read: {error}") from None
    if len(labels) != classes:
        raise BuildError(
            f"{path} has {len(labels)} labels, the checkpoint has {classes} classes; give one label a line"
        )
    return labels


def build_key(
    checkpoint_sha256: str,
    recipe: Preprocessing,
    labels: tuple[str, ...],
    sample: NDArray[np.uint8],
    tools: dict[str, str],
    options: Options,
) -> str:
    """SHA-256 (hex) of all that decides the result: equal keys, equal builds."""
    parts = [
        checkpoint_sha256,
        recipe.fingerprint,
        labels,
        options.max_batch,
        options.attention_graph,
        hashlib.sha256(sample.tobytes()).hexdigest(),
        tools,
        options.arch,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _golden(path: Path, answers: NDArray[np.float32], figures: Verification) -> Golden:
    rows = tuple(tuple(float(p) for p in row) for row in answers[:GOLDEN_IMAGES])
    # Another processor's kernels may differ in the last bits, as the engine may from the network.
    return Golden(sha256=_sha256(path), probabilities=rows, tolerance=10 * figures.tolerance)


def _head(head: torch.nn.Linear) -> Head:
    def encoded(tensor: torch.Tensor) -> str:
        return base64.b64encode(tensor.detach().numpy().astype("<f4").tobytes()).decode()

    return Head(
        classes=head.out_features, channels=head.in_features, weight=encoded(head.weight), bias=encoded(head.bias)
    )
