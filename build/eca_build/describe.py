"""What a finished version says of itself: its contract."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from eca_service.contract import (
    FEATURES,
    GATES,
    GOLDEN_FILE,
    PROBABILITIES,
    Calibration,
    Choice,
    Contract,
    GateSite,
    Golden,
    Head,
)
from numpy.typing import NDArray

from eca_build import cost, targets
from eca_build.choose import Verified
from eca_build.gate_taps import gate_sites
from eca_build.inputs import Inputs, digest
from eca_build.provenance import sha256
from eca_build.targets import Variant

GOLDEN_IMAGES = 4


@dataclass(frozen=True)
class Outputs:
    """The shape of the last feature map, without the batch, and the gates where they are exposed."""

    features_shape: tuple[int, int, int]
    gates: tuple[GateSite, ...]


@torch.inference_mode()
def outputs_of(inputs: Inputs) -> Outputs:
    """What an engine of these inputs answers beside the probabilities."""
    network, crop = inputs.checkpoint.network, inputs.recipe.crop
    channels, height, width = network.feature_map(torch.zeros(1, 3, crop, crop)).shape[1:]
    return Outputs((channels, height, width), gate_sites(network, crop) if inputs.wish.expose_gates else ())


def contract_of(
    inputs: Inputs, outputs: Outputs, version: int, chosen: Verified, choice: Choice | None, home: Path
) -> Contract:
    """The contract of the chosen engine, which is in `home`, beside the golden images that it writes there."""
    loaded, recipe = inputs.checkpoint, inputs.recipe
    variant, engine = chosen.variant, chosen.engine
    tolerance = targets.gate(variant, inputs.random).golden
    golden = golden_images(engine.answers, tolerance)
    np.save(home / GOLDEN_FILE, inputs.sample[golden])
    return Contract(
        name=inputs.name,
        version=version,
        architecture=loaded.spec.arch,
        attention=loaded.spec.attention,
        weights=loaded.weights,
        kernel_sizes=loaded.spec.sizes if loaded.spec.attention in ("eca", "eca-ns") else (),
        classes=loaded.spec.classes,
        labels=inputs.labels,
        preprocessing=recipe,
        preprocessing_fingerprint=recipe.fingerprint,
        outputs=(PROBABILITIES, FEATURES, GATES) if outputs.gates else (PROBABILITIES, FEATURES),
        features_shape=outputs.features_shape,
        gates=outputs.gates,
        precision=variant.precision,
        engine=variant.target,
        runtime=variant.runtime,
        attention_graph=variant.attention_graph,
        sites_rewritten=engine.sites,
        max_batch=variant.max_batch,
        parameters=cost.parameters(loaded.network),
        flops=cost.flops(loaded.network, recipe.crop),
        build_key=inputs.key,
        checkpoint_sha256=loaded.sha256,
        onnx_sha256=engine.onnx_sha256,
        engine_sha256=sha256(home / engine.file.name),
        tools=inputs.tools,
        passport=engine.passport,
        calibration=_calibration(variant, inputs),
        choice=choice,
        verification=chosen.figures,
        golden=Golden(
            sha256=sha256(home / GOLDEN_FILE),
            probabilities=tuple(tuple(float(p) for p in row) for row in engine.answers[0][golden]),
            tolerance=tolerance,
        ),
        head=_head(loaded.network.head),
    )


def golden_images(answers: Sequence[NDArray[np.float32]], tolerance: float) -> NDArray[np.int64]:
    """Indices of the images whose answers are asked before the model counts as ready, spread over the sample.

    `answers` [N, K] are those of each runtime that may serve the file. Only images on which they are closer than half
    the tolerance are taken, where there are enough.
    """
    spread = np.ptp(np.stack(answers), axis=0).max(1)
    calm = np.flatnonzero(spread < tolerance / 2)
    calm = calm if len(calm) >= GOLDEN_IMAGES else np.argsort(spread, kind="stable")[:GOLDEN_IMAGES]
    picked: NDArray[np.int64] = calm[np.linspace(0, len(calm) - 1, min(GOLDEN_IMAGES, len(calm))).astype(int)]
    return picked


def _calibration(variant: Variant, inputs: Inputs) -> Calibration | None:
    images = inputs.calibration
    if variant.precision != "int8" or images is None:
        return None
    return Calibration(source=inputs.calibrated_on, images=len(images), sha256=digest(images))


def _head(head: torch.nn.Linear) -> Head:
    def encoded(tensor: torch.Tensor) -> str:
        return base64.b64encode(tensor.detach().numpy().astype("<f4").tobytes()).decode()

    return Head(
        classes=head.out_features, channels=head.in_features, weight=encoded(head.weight), bias=encoded(head.bias)
    )
