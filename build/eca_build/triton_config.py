"""The text of a model's config.pbtxt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eca_service.contract import GateSite
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from eca_build.errors import BuildError

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
dynamic_batching {{ default_queue_policy {{ max_queue_size: {most_waiting} }} }}
version_policy {{ latest {{ num_versions: 2 }} }}
"""

# Requests that wait in Triton: far more than gateways send, which bound what they take by themselves. A second fence.
MOST_WAITING = 512
HOW = ("instance_group", "dynamic_batching", "version_policy")  # of how it is served, not of what callers see

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
        most_waiting=MOST_WAITING,
        size=crop,
        classes=classes,
        features=", ".join(map(str, features_shape)),
        gates=GATES.format(channels=sum(site.channels for site in gates)) if gates else "",
    )


def interface(text: str, home: Path) -> str:
    """What callers depend on in a configuration: all but how the model is served, which operators may tune.

    Raises BuildError, about the config.pbtxt in `home`, where the text is no configuration.
    """
    try:
        found = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise BuildError(f"{home / 'config.pbtxt'} cannot be read ({error}); restore it") from None
    for name in HOW:
        found.ClearField(name)
    return str(found)
