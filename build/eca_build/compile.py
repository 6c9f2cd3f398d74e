"""The build: checkpoint -> ONNX -> verified in a new process -> published."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from eca_service.contract import (
    CONTRACT_FILE,
    FEATURES,
    GATES,
    GOLDEN_FILE,
    PROBABILITIES,
    Contract,
    ContractError,
    Golden,
    Head,
    Preprocessing,
    Verification,
    read,
)
from numpy.typing import NDArray

from eca_build import checkpoint, cost, images, targets, verify
from eca_build.errors import BuildError
from eca_build.export import reference
from eca_build.gate_taps import gate_sites
from eca_build.networks.attention import Kind
from eca_build.publish import CONFIG_FILE, LABELS_FILE, publish, staging, versions
from eca_build.targets import Wish
from eca_build.triton_config import config

GOLDEN_IMAGES = 4
STEPS = ("read the checkpoint", "export to ONNX", "build the engine", "verify in a new process", "publish")


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
    attention: Kind | None = None
    wish: Wish = field(default_factory=Wish)


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
    step("read the checkpoint")
    targets.require(options.wish)
    loaded = checkpoint.load(options.checkpoint, options.arch, options.attention)
    recipe = default_recipe(loaded.spec.arch)
    if options.size:
        recipe = recipe.model_copy(update={"resize": options.size[0], "crop": options.size[1]})
    name = options.name or default_name(options.checkpoint)
    labels = read_labels(options.labels, loaded.spec.classes, loaded.weights == "random")
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
        engine = targets.build(options.wish, loaded.network, recipe, home, sample, step)
        expected = reference(loaded.network, recipe, torch.from_numpy(sample)).numpy()
        gate = targets.GATES[options.wish.precision]
        source = f"{source}; {engine.verified}" if engine.verified else source
        compared = [verify.compare(expected, got, *gate, source) for got in engine.answers]
        figures = max(compared, key=lambda figure: figure.largest_difference)
        step("publish")
        np.save(home / GOLDEN_FILE, sample[:GOLDEN_IMAGES])
        with torch.inference_mode():
            features = loaded.network.feature_map(torch.zeros(1, 3, recipe.crop, recipe.crop)).shape[1:]
        gates = gate_sites(loaded.network, recipe.crop) if options.wish.expose_gates else ()
        contract = Contract(
            name=name,
            version=version,
            architecture=loaded.spec.arch,
            attention=loaded.spec.attention,
            weights=loaded.weights,
            kernel_sizes=loaded.spec.sizes if loaded.spec.attention in ("eca", "eca-ns") else (),
            classes=loaded.spec.classes,
            labels=labels,
            preprocessing=recipe,
            preprocessing_fingerprint=recipe.fingerprint,
            outputs=(PROBABILITIES, FEATURES, GATES) if gates else (PROBABILITIES, FEATURES),
            features_shape=(features[0], features[1], features[2]),
            gates=gates,
            precision=options.wish.precision,
            engine=options.wish.target,
            attention_graph=options.wish.attention_graph,
            sites_rewritten=engine.sites,
            max_batch=options.wish.max_batch,
            parameters=cost.parameters(loaded.network),
            flops=cost.flops(loaded.network, recipe.crop),
            build_key=key,
            checkpoint_sha256=loaded.sha256,
            onnx_sha256=engine.onnx_sha256,
            engine_sha256=targets.sha256(engine.file),
            tools=tools,
            passport=engine.passport,
            verification=figures,
            golden=_golden(home / GOLDEN_FILE, engine.answers[0], figures),
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


def read_labels(path: Path | None, classes: int, random: bool = False) -> tuple[str, ...]:
    """One label a line, as many as there are classes, else BuildError; without a file, numbered ones.

    Those of a network with random weights say so, and real names for its classes are refused.
    """
    if random:
        if path is not None:
            raise BuildError(f"the weights are random, for latency only: they know none of {path}; leave --labels out")
        return tuple(f"random weights, for latency only: {index}" for index in range(classes))
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
        asdict(options.wish),
        hashlib.sha256(sample.tobytes()).hexdigest(),
        tools,
        options.arch,
        options.attention,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _golden(path: Path, answers: NDArray[np.float32], figures: Verification) -> Golden:
    rows = tuple(tuple(float(p) for p in row) for row in answers[:GOLDEN_IMAGES])
    # Another processor's kernels may differ in the last bits, as the engine may from the network.
    return Golden(sha256=targets.sha256(path), probabilities=rows, tolerance=10 * figures.tolerance)


def _head(head: torch.nn.Linear) -> Head:
    def encoded(tensor: torch.Tensor) -> str:
        return base64.b64encode(tensor.detach().numpy().astype("<f4").tobytes()).decode()

    return Head(
        classes=head.out_features, channels=head.in_features, weight=encoded(head.weight), bias=encoded(head.bias)
    )
