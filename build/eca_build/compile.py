"""The build: checkpoint -> ONNX -> verified in a new process -> published."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Callable, Sequence
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
    Calibration,
    Contract,
    ContractError,
    Golden,
    Head,
    Preprocessing,
    Verification,
    damage,
    read,
)
from numpy.typing import NDArray

from eca_build import checkpoint, cost, images, measure, targets, tensorrt_plan, verify
from eca_build.choose import fastest
from eca_build.digest import sha256
from eca_build.engine import Engine, Maker
from eca_build.errors import BuildError
from eca_build.export import reference
from eca_build.gate_taps import gate_sites
from eca_build.networks.attention import Kind
from eca_build.publish import CONFIG_FILE, LABELS_FILE, publish, staging, versions
from eca_build.targets import Variant, Wish
from eca_build.triton_config import config

GOLDEN_IMAGES = 4
SYNTHETIC = "synthetic images with the spectrum of photographs"


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
    calibration: Path | None = None


@dataclass(frozen=True)
class Built:
    """A published version; `changed` is false where the repository already held the result of the same inputs."""

    folder: Path
    contract: Contract
    changed: bool


def steps(wish: Wish) -> int:
    """How many steps a build takes that is not refused."""
    count = len(targets.variants(wish))
    return 2 + 2 * count + (count > 1)


def compile_checkpoint(options: Options, step: Callable[[str], None]) -> Built:
    """Builds, verifies and publishes one version; `step` is told the name of each step as it begins.

    Raises BuildError, with nothing published, for everything that can be wrong with the inputs or the result.
    """
    step("read the checkpoint")
    variants = targets.variants(options.wish)
    loaded = checkpoint.load(options.checkpoint, options.arch, options.attention)
    recipe = default_recipe(loaded.spec.arch)
    if options.size:
        recipe = recipe.model_copy(update={"resize": options.size[0], "crop": options.size[1]})
    name = options.name or default_name(options.checkpoint)
    random_weights = loaded.weights == "random"
    labels = read_labels(options.labels, loaded.spec.classes, random_weights)
    sample, source, classes = images.synthetic(recipe.crop), SYNTHETIC, None
    if options.images:
        sample, source = images.load(options.images, recipe), f"{options.images.name}/"
        classes = images.classes(options.images, labels)
    calibration = sample if options.images or random_weights else None
    calibrated_on = source
    if options.calibration:
        calibration = images.load(options.calibration, recipe, option="--calibration")
        calibrated_on = f"{options.calibration.name}/"
    tools = _tools(variants)
    key = build_key(loaded.sha256, recipe, labels, (sample, calibration), tools, options)
    with staging(options.repository) as staged:
        published = versions(options.repository, name)
        if published:
            folder = options.repository / name / str(published[-1])
            try:
                newest = read(folder)
                if newest.build_key == key and damage(newest, folder) is None:
                    return Built(folder, newest, changed=False)
            except ContractError:
                pass  # what cannot be read cannot be the same
        version = (published or [0])[-1] + 1  # beside one that is unsound too
        scratch, trials = staged / "scratch", staged / "trials"
        scratch.mkdir()
        trials.mkdir()  # on the repository's file system, so that publishing is a rename
        maker = Maker(loaded.network, recipe, scratch, sample, calibration, options.wish.expose_gates)
        expected = reference(loaded.network, recipe, torch.from_numpy(sample)).numpy()

        def figures_of(variant: Variant, engine: Engine) -> Verification:
            gate = targets.gate(variant, random_weights)
            told = f"{source}; {engine.verified}" if engine.verified else source
            compared = [
                verify.compare(expected, got, gate.largest, gate.agreement, told, classes) for got in engine.answers
            ]
            return max(compared, key=lambda figures: figures.largest_difference)

        chosen, choice = fastest(variants, maker, trials, figures_of, sample, step)
        step("publish")
        variant, engine = chosen.variant, chosen.engine
        home = chosen.home.rename(staged / str(version))
        shutil.rmtree(scratch)
        shutil.rmtree(trials)
        golden = golden_images(engine.answers, targets.gate(variant, random_weights).golden)
        np.save(home / GOLDEN_FILE, sample[golden])
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
            precision=variant.precision,
            engine=variant.target,
            runtime=variant.runtime,
            attention_graph=variant.attention_graph,
            sites_rewritten=engine.sites,
            max_batch=variant.max_batch,
            parameters=cost.parameters(loaded.network),
            flops=cost.flops(loaded.network, recipe.crop),
            build_key=key,
            checkpoint_sha256=loaded.sha256,
            onnx_sha256=engine.onnx_sha256,
            engine_sha256=sha256(home / engine.file.name),
            tools=tools,
            passport=engine.passport,
            calibration=_calibration(variant, calibrated_on, calibration),
            choice=choice,
            verification=chosen.figures,
            golden=Golden(
                sha256=sha256(home / GOLDEN_FILE),
                probabilities=tuple(tuple(float(p) for p in row) for row in engine.answers[0][golden]),
                tolerance=targets.gate(variant, random_weights).golden,
            ),
            head=_head(loaded.network.head),
        )
        (home / CONTRACT_FILE).write_text(contract.model_dump_json(indent=1) + "\n")
        (staged / LABELS_FILE).write_text("\n".join(labels) + "\n")
        (staged / CONFIG_FILE).write_text(config(contract))
        folder = publish(staged, options.repository, name, version)
    return Built(folder, contract, changed=True)


def golden_images(answers: Sequence[NDArray[np.float32]], tolerance: float) -> NDArray[np.int64]:
    """Indices of the images whose answers are asked before the model counts as ready, spread over the sample.

    `answers` [N, K] are those of each runtime that may serve the file. Only images on which they are closer than half
    the tolerance are taken, where there are enough.
    """
    spread = np.ptp(np.stack(answers), axis=0).max(1)
    calm = np.flatnonzero(spread < tolerance / 2)
    calm = calm if len(calm) >= GOLDEN_IMAGES else np.argsort(spread)[:GOLDEN_IMAGES]
    picked: NDArray[np.int64] = calm[np.linspace(0, len(calm) - 1, min(GOLDEN_IMAGES, len(calm))).astype(int)]
    return picked


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
    pixels: Sequence[NDArray[np.uint8] | None],
    tools: dict[str, str],
    options: Options,
) -> str:
    """SHA-256 (hex) of all that decides the result: equal keys, equal builds. What is fastest, the machine decides."""
    parts = [
        checkpoint_sha256,
        recipe.fingerprint,
        labels,
        asdict(options.wish),
        [None if images is None else _digest(images) for images in pixels],
        tools,
        options.arch,
        options.attention,
        measure.machine() if options.wish.auto else None,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _tools(variants: Sequence[Variant]) -> dict[str, str]:
    tools = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    if any(variant.runtime == "openvino" for variant in variants):
        tools["openvino"] = importlib.metadata.version("openvino")
    if any(variant.target == "tensorrt" for variant in variants):
        tools |= tensorrt_plan.tools()
    return tools


def _digest(images: NDArray[np.uint8]) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()


def _calibration(variant: Variant, source: str, images: NDArray[np.uint8] | None) -> Calibration | None:
    if variant.precision != "int8" or images is None:
        return None
    return Calibration(source=source, images=len(images), sha256=_digest(images))


def _head(head: torch.nn.Linear) -> Head:
    def encoded(tensor: torch.Tensor) -> str:
        return base64.b64encode(tensor.detach().numpy().astype("<f4").tobytes()).decode()

    return Head(
        classes=head.out_features, channels=head.in_features, weight=encoded(head.weight), bias=encoded(head.bias)
    )
