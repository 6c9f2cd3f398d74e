"""What is understood of a request of the Open Inference Protocol, and what an answer becomes as its tensors."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from eca_service.answers import Answer, Prediction, Result
from eca_service.batching import Totals
from eca_service.errors import ServiceError
from eca_service.oip import (
    OUTPUTS,
    as_json,
    model_config,
    model_metadata,
    require_input,
    require_outputs,
    require_plain,
    require_version,
    statistics,
    tensors,
    unpack,
)

from tests.unit.test_contract import CONTRACT

CUT = Result(error=ServiceError("image_truncated", "it is cut off"))
OTHER = Result(error=ServiceError("unsupported_image_format", "it is none"))
DOG = Result((Prediction(5, "dog", 0.75), Prediction(3, "cat", 0.25)))


def told(*results: Result) -> list[Any]:
    """The label, index and score of each image's best class."""
    contract: Any = None  # it is not looked at
    found = {one.name: one.values for one in tensors(Answer(contract, list(results), 0), 2, list(OUTPUTS))}
    return [
        (found["label"][row][0].decode(), found["index"][row, 0], found["score"][row, 0]) for row in range(len(results))
    ]


def test_each_image_of_several_has_its_own_error() -> None:
    cut, other = (
        ("error: image_truncated: it is cut off", -1, 0),
        ("error: unsupported_image_format: it is none", -1, 0),
    )
    assert told(CUT, DOG) == [cut, ("dog", 5, 0.75)]
    assert told(CUT, OTHER) == [cut, other], "also where none succeeded"


def test_the_error_of_a_lone_image_is_raised_and_holds_nothing() -> None:
    with pytest.raises(ServiceError, match="image_truncated: it is cut off"):
        told(CUT)
    assert CUT.error is not None
    assert CUT.error.__traceback__ is None, "by its frames it would hold the answer, which holds it"


def test_what_is_asked_is_understood() -> None:
    assert [require_input("image", "BYTES", shape, 4) for shape in ([4], [4, 1], [1, 1])] == [4, 4, 1]
    assert require_outputs([]) == ["label", "index", "score"], "all where none is named"
    assert require_outputs(["score", "label"]) == ["score", "label"]
    assert (require_version(""), require_version("12")) == (None, 12)
    assert unpack(b"\2\0\0\0ab\0\0\0\0\1\0\0\0c", 3) == [b"ab", b"", b"c"]
    assert unpack(b"\0\0\0\0", 1) == [b""]
    require_plain("image", {"binary_data_size": 6})


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: require_input("pixels", "BYTES", [1], 4), "bad_request: there is no input 'pixels'"),
        (lambda: require_input("image", "UINT8", [1], 4), "bad_request: image has datatype 'UINT8'"),
        *(
            (lambda shape=shape: require_input("image", "BYTES", shape, 4), "bad_request: image has shape")
            for shape in ([], [0], [-1], [0, 1], [2, 2], [2, 1, 1])
        ),
        (lambda: require_input("image", "BYTES", [5], 4), "bad_request: the request holds 5 images, at most 4"),
        (lambda: require_outputs(["label", "boxes"]), "bad_request: there is no output 'boxes'; there are: label"),
        (lambda: require_outputs(["label", "label"]), "bad_request: an output is named twice"),
        (
            lambda: require_plain("score", {"classification": 3}),
            "bad_parameter: score asks for Triton.s classification",
        ),
        (lambda: require_plain("image", {"shared_memory_region": "r"}), "bad_parameter: image asks for shared memory"),
        (lambda: require_version("latest"), "version_not_found: there is no version 'latest'"),
        (lambda: require_version("-1"), "version_not_found"),
        *(
            (lambda raw=raw, count=count: unpack(raw, count), f"bad_request: the {len(raw)} bytes of image do not hold")
            for raw, count in (
                (b"", 1),
                (b"\0\0\0", 1),
                (b"\2\0\0\0a", 1),
                (b"\2\0\0\0a", 2),
                (b"\1\0\0\0ab", 1),
                (b"\1\0\0\0a", 2),
                (b"\1\0\0\0a\0\0\0\0", 1),
            )
        ),
    ],
)
def test_what_cannot_be_asked_is_told(ask: Callable[[], object], told: str) -> None:
    with pytest.raises(ServiceError, match=told):
        ask()


def test_what_was_counted_is_told_in_the_protocol_s_units() -> None:
    """Milliseconds since 1970, nanoseconds, and numbers as numbers."""
    totals = Totals(images=6, batches=2, last_s=1000.25, answered=3, failed=1, queue_s=0.5, infer_s=1.5)
    (told,) = as_json(statistics([(CONTRACT, totals)]))["model_stats"]
    assert (told["name"], told["version"], told["last_inference"]) == (CONTRACT.name, str(CONTRACT.version), 1_000_250)
    assert (told["inference_count"], told["execution_count"]) == (6, 2)
    counted = {name: (part["count"], part["ns"]) for name, part in told["inference_stats"].items() if part["count"]}
    assert counted == {
        "success": (3, 2_000_000_000),
        "fail": (1, 0),
        "queue": (3, 500_000_000),
        "compute_input": (3, 0),
        "compute_infer": (3, 1_500_000_000),
        "compute_output": (3, 0),
    }


def test_numbers_and_texts_are_the_same_as_bytes_and_for_json() -> None:
    found = {one.name: one for one in tensors(Answer(CONTRACT, [DOG], 0), 2, list(OUTPUTS))}
    assert {name: one.raw() for name, one in found.items()} == {
        "label": b"\3\0\0\0dog\3\0\0\0cat",
        "index": struct.pack("<2i", 5, 3),
        "score": struct.pack("<2f", 0.75, 0.25),
    }
    assert {name: one.flat() for name, one in found.items()} == {
        "label": ["dog", "cat"],
        "index": [5, 3],
        "score": [0.75, 0.25],
    }


def test_the_metadata_has_the_tensors() -> None:
    metadata = model_metadata(CONTRACT)
    assert (metadata["name"], metadata["versions"]) == (CONTRACT.name, ["1"])
    assert [(one["name"], one["datatype"], one["shape"]) for one in metadata["inputs"] + metadata["outputs"]] == [
        ("image", "BYTES", [-1]),
        *((name, datatype, [-1, -1]) for name, datatype in OUTPUTS.items()),
    ]


def test_the_configuration_has_the_tensors() -> None:
    config = as_json(model_config(CONTRACT))
    assert (config["name"], config["max_batch_size"]) == (CONTRACT.name, 0)
    assert [(one["name"], one["data_type"], one["dims"]) for one in config["input"] + config["output"]] == [
        ("image", "TYPE_STRING", [-1]),
        ("label", "TYPE_STRING", [-1, -1]),
        ("index", "TYPE_INT32", [-1, -1]),
        ("score", "TYPE_FP32", [-1, -1]),
    ]
