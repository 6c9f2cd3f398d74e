"""All that decides what a build gives, read and checked before anything is built."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from eca_service.contract import NAME, Preprocessing
from numpy.typing import NDArray

from eca_build import checkpoint, images, inductor, measure, targets, tensorrt_plan, tensorrt_rtx
from eca_build.checkpoint import Checkpoint
from eca_build.errors import BuildError
from eca_build.images import MOST
from eca_build.labels import read_labels
from eca_build.networks.attention import Kind
from eca_build.provenance import code_sha256, versions
from eca_build.recipes import recipe_beside, recipe_of
from eca_build.targets import Variant, Wish

# What timm, Hugging Face and the training scripts of timm, ECA-Net's authors and Lightning call every checkpoint.
ANONYMOUS = ("model", "pytorch_model", "model_best", "checkpoint", "best", "last")
SYNTHETIC = "synthetic images with the spectrum of photographs"
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Options:
    """What the user asked for; see `eca-build compile --help`."""

    checkpoint: Path
    repository: Path
    preprocessing: Mapping[str, object] = field(default_factory=dict)  # what was asked for, by field; else None
    name: str | None = None
    arch: str | None = None
    labels: Path | None = None
    images: Path | None = None
    attention: Kind | None = None
    wish: Wish = field(default_factory=Wish)
    calibration: Path | None = None
    most_images: int = MOST
    alongside: bool = False  # with others that would be called the same, see `default_name`


@dataclass(frozen=True)
class Inputs:
    """What one build is made from.

    `recipe_beside`: what was not asked for of the recipe is by a file beside the checkpoint. `sample` are the
    images that are verified on, uint8 [N, crop, crop, 3], `source` says which; `classes` are theirs, int64 [N] with -1
    for unknown, None where the images are synthetic. `calibration` are the images that integers' ranges come from, None
    where there are none. `key` is the `build_key`.
    """

    checkpoint: Checkpoint
    name: str
    recipe: Preprocessing
    recipe_beside: bool
    labels: tuple[str, ...]
    wish: Wish
    variants: Sequence[Variant]
    sample: Pixels
    source: str
    classes: NDArray[np.int64] | None
    calibration: Pixels | None
    calibrated_on: str
    tools: dict[str, str]
    key: str

    @property
    def random(self) -> bool:
        """Whether the weights are random, for latency only."""
        return self.checkpoint.weights == "random"


def gather(options: Options) -> Inputs:
    """Reads what `options` name. Raises BuildError for all that can be wrong with it."""
    name = options.name or default_name(options.checkpoint, options.alongside)
    if not re.fullmatch(NAME, name):
        raise BuildError(
            f"a model cannot be called {name!r}; give it a --name of up to 100 letters, digits, '.', '_' and '-' that "
            "begins with a letter or digit"
        )
    variants = targets.variants(options.wish)
    loaded = checkpoint.load(options.checkpoint, options.arch, options.attention)
    arch = loaded.spec.arch
    asked = {name: value for name, value in options.preprocessing.items() if value is not None}
    beside = {} if len(asked) == len(Preprocessing.model_fields) else recipe_beside(options.checkpoint, arch)
    recipe = recipe_of(arch, beside | asked)
    random = loaded.weights == "random"
    labels = read_labels(options.labels, loaded.spec.classes, random)
    # integers with the ranges of photographs may fail on noise, where the network itself is sure of nothing
    shown = options.images or options.calibration
    if shown:
        option = "--images" if options.images else "--calibration"
        sample, source = images.load(shown, recipe, options.most_images, option), called(shown)
        classes = images.classes(shown, labels, options.most_images)
    else:
        sample, source, classes = images.synthetic(recipe.crop, images.enough(recipe.crop)), SYNTHETIC, None
    calibration = sample[images.spread(len(sample), MOST)] if shown or random else None
    calibrated_on = source
    if options.calibration:
        calibration = images.load(options.calibration, recipe, option="--calibration")
        calibrated_on = called(options.calibration)
    tools = tools_of(variants)
    return Inputs(
        checkpoint=loaded,
        name=name,
        recipe=recipe,
        recipe_beside=bool(beside),
        labels=labels,
        wish=options.wish,
        variants=variants,
        sample=sample,
        source=source,
        classes=classes,
        calibration=calibration,
        calibrated_on=calibrated_on,
        tools=tools,
        key=build_key(loaded.sha256, recipe, labels, (sample, classes, calibration), tools, options),
    )


def called(folder: Path) -> str:
    """What the contract calls a folder of images: by its own name, also where it is given as `.`."""
    name = os.fsencode(os.path.basename(os.path.abspath(folder)))
    return f"{name.decode('utf-8', 'replace')}/"  # a name may be in any encoding, a contract is in this


def default_name(path: Path, alongside: bool = False) -> str:
    """The file's name without its suffixes, or where every checkpoint is called so, its folder's; that and its own
    where it is built `alongside` another of its folder that is called so, as a training's best and last are.

    In Hugging Face's cache, whose folders are called by commits (models--timm--NAME/snapshots/COMMIT/), it is the
    repository's, and in the root folder, which has no name, the file's after all.
    """
    name = path.name
    for suffix in (".pth.tar", ".safetensors", ".pth", ".pt", ".ckpt", ".bin"):
        name = name.removesuffix(suffix)
    if name not in ANONYMOUS:
        return name
    folder = os.path.dirname(os.path.abspath(path))  # links stay: in that cache the file is one
    cached = re.search(r"/models--([^/]+)/snapshots/[^/]+$", folder)
    called_after = cached[1].rpartition("--")[2] if cached else os.path.basename(folder)
    return "-".join(filter(None, (called_after, name))) if alongside else called_after or name


def build_key(
    checkpoint_sha256: str,
    recipe: Preprocessing,
    labels: tuple[str, ...],
    arrays: Sequence[NDArray[np.uint8] | NDArray[np.int64] | None],
    tools: dict[str, str],
    options: Options,
) -> str:
    """SHA-256 (hex) of all that decides the result: equal keys, equal builds. What is fastest, the machine decides.

    `arrays` are the images and their classes.
    """
    parts = [
        checkpoint_sha256,
        recipe.fingerprint,
        labels,
        asdict(options.wish),
        [None if array is None else digest(array) for array in arrays],
        tools,
        code_sha256(),
        options.arch,
        options.attention,
        measure.machine() if options.wish.auto else None,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest(array: NDArray[np.uint8] | NDArray[np.int64]) -> str:
    """SHA-256 (hex) of an array's values."""
    return hashlib.sha256(array.tobytes()).hexdigest()


def tools_of(variants: Sequence[Variant]) -> dict[str, str]:
    """What builds and runs `variants`, by name: versions, and of the machine what compiled engines depend on."""
    tools = {"python": platform.python_version()} | versions("torch", "onnx", "onnxscript", "onnxruntime")
    if any(variant.runtime == "openvino" for variant in variants):
        tools |= versions("openvino")
    targeted = {variant.target for variant in variants}
    for target, more in (
        ("tensorrt", tensorrt_plan.tools),
        ("tensorrt-rtx", tensorrt_rtx.tools),
        ("inductor", inductor.tools),
    ):
        if target in targeted:
            tools |= more()
    return tools
