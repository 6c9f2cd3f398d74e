"""The text of a model's config.pbtxt."""

from __future__ import annotations

from collections.abc import Sequence

from eca_service.contract import GateSite

TEMPLATE = """\
name: "{name}"
{engine}
max_batch_size: {max_batch}
input [ {{ name: "image" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] }} ]
output [
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "labels.txt" }},
  {{ name: "features" data_type: TYPE_FP32 dims: [ {features} ] }}{gates}
]
instance_group [ {{ count: 1 kind: {kind} }} ]
dynamic_batching {{ }}
version_policy {{ latest {{ num_versions: 2 }} }}
"""

GATES = """,
  {{ name: "gates" data_type: TYPE_FP32 dims: [ {channels} ] }}"""


ENGINES = {
    "onnx": ('backend: "onnxruntime"', "KIND_CPU"),
    "tensorrt": ('platform: "tensorrt_plan"', "KIND_GPU"),
    # Ours puts the images on the GPU by itself, so that Triton needs none.
    "inductor": ('backend: "inductor"', "KIND_CPU"),
    # No backend of Triton's runs these engines; applications load them by themselves.
    "tensorrt-rtx": ('backend: "tensorrt-rtx"', "KIND_GPU"),
}


def config(
    *,
    name: str,
    engine: str,
    max_batch: int,
    crop: int,
    classes: int,
    features_shape: Sequence[int],
    gates: Sequence[GateSite],
) -> str:
    """The configuration with which Triton serves an engine; the arguments are the contract's, the images' side `crop`.

    It is known before anything is built. `gates` is empty where they are no output.
    """
    what, kind = ENGINES[engine]
    return TEMPLATE.format(
        name=name,
        engine=what,
        kind=kind,
        max_batch=max_batch,
        size=crop,
        classes=classes,
        features=", ".join(map(str, features_shape)),
        gates=GATES.format(channels=sum(site.channels for site in gates)) if gates else "",
    )
