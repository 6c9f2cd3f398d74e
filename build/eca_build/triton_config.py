"""The text of a model's config.pbtxt."""

from __future__ import annotations

from eca_service.contract import Contract

TEMPLATE = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch}
input [ {{ name: "image" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] }} ]
output [
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "labels.txt" }},
  {{ name: "features" data_type: TYPE_FP32 dims: [ {features} ] }}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
dynamic_batching {{ }}
version_policy {{ latest {{ num_versions: 2 }} }}
"""


def config(contract: Contract) -> str:
    """The configuration with which Triton serves `contract`'s engine on a CPU."""
    return TEMPLATE.format(
        name=contract.name,
        max_batch=contract.max_batch,
        size=contract.preprocessing.crop,
        classes=contract.classes,
        features=", ".join(map(str, contract.features_shape)),
    )
