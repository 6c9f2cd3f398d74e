"""The text of a model's config.pbtxt."""

from __future__ import annotations

from eca_service.contract import Contract

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


def config(contract: Contract) -> str:
    """The configuration with which Triton serves `contract`'s engine."""
    engine, kind = ENGINES[contract.engine]
    return TEMPLATE.format(
        name=contract.name,
        engine=engine,
        kind=kind,
        max_batch=contract.max_batch,
        size=contract.preprocessing.crop,
        classes=contract.classes,
        features=", ".join(map(str, contract.features_shape)),
        gates=GATES.format(channels=sum(site.channels for site in contract.gates)) if contract.gates else "",
    )
