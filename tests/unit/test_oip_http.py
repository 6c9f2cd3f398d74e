"""What the body of an inference over HTTP asks for."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import pytest
from eca_service.errors import ServiceError
from eca_service.oip_http import _Asked, _parse, is_oip

from tests.unit.test_contract import CONTRACT

TENSOR: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1]}
PLAIN = TENSOR | {"data": ["YQ=="]}


def asked(tail: bytes | None = None, most: int = 4, **head: Any) -> _Asked:
    """What a request with this head, and these bytes behind it, asks for."""
    text = json.dumps({"inputs": [PLAIN]} | head).encode()
    return _parse(text + (tail or b""), None if tail is None else str(len(text)), CONTRACT, most)


def test_the_protocol_s_paths() -> None:
    assert [path for path in ("/v2", "/v2/", "/v2/models", "/v2x", "/v1", "/") if is_oip(path)] == [
        *("/v2", "/v2/", "/v2/models")
    ]


def test_images_are_texts_or_bytes() -> None:
    assert asked().images == [b"a"]
    two = TENSOR | {"shape": [2]}
    assert asked(inputs=[two | {"data": ["YQ==", "Yg=="]}]).images == [b"a", b"b"]
    assert asked(inputs=[two | {"shape": [2, 1], "data": [["YQ=="], ["Yg=="]]}]).images == [b"a", b"b"]
    raw = struct.pack("<I", 1) + b"a"
    assert asked(raw, inputs=[TENSOR | {"parameters": {"binary_data_size": len(raw)}}]).images == [b"a"]
    assert asked(b"").images == [b"a"], "nothing behind the head"


@pytest.mark.parametrize(
    ("head", "binary"),
    [
        ({}, set()),
        ({"parameters": {"binary_data_output": True}}, {"label", "index", "score"}),
        ({"parameters": {"binary_data_output": 1}}, set()),
        ({"outputs": [{"name": "label", "parameters": {"binary_data": True}}, {"name": "score"}]}, {"label"}),
        (
            {
                "outputs": [{"name": "label", "parameters": {"binary_data": False}}, {"name": "score"}],
                "parameters": {"binary_data_output": True},
            },
            {"score"},
        ),
    ],
)
def test_outputs_are_bytes_where_they_are_wanted_so(head: dict[str, Any], binary: set[str]) -> None:
    found = asked(**head)
    assert found.binary == binary
    assert found.outputs == ([output["name"] for output in head.get("outputs", [])] or ["label", "index", "score"])


def test_what_else_is_asked() -> None:
    assert (asked().id, asked().top_k) == ("", CONTRACT.classes)
    found = asked(id=7, parameters={"top_k": 1})
    assert (found.id, found.top_k) == ("7", 1)
    for holder in ({"parameters": None, "outputs": None, "id": None}, {"inputs": [PLAIN | {"parameters": None}]}):
        assert asked(**holder).outputs == ["label", "index", "score"], "as clients write what they leave out"


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ({"inputs": {}}, "inputs must be a list"),
        ({"inputs": []}, "the request has 0 inputs"),
        ({"inputs": [PLAIN, PLAIN]}, "the request has 2 inputs"),
        ({"inputs": [1]}, "an input must be a JSON object"),
        ({"inputs": [PLAIN | {"shape": 1}]}, "the shape of image must be a list of whole numbers"),
        ({"inputs": [PLAIN | {"shape": [1.0]}]}, "the shape of image must be a list of whole numbers"),
        ({"inputs": [PLAIN | {"shape": [True]}]}, "the shape of image must be a list of whole numbers"),
        ({"inputs": [PLAIN | {"shape": [1, "1"]}]}, "the shape of image must be a list of whole numbers"),
        ({"inputs": [PLAIN | {"shape": [5], "data": ["YQ=="] * 5}]}, "the request holds 5 images, at most 4"),
        ({"inputs": [PLAIN | {"shape": [2]}]}, "the data of image must be a list of 2 base64 strings"),
        ({"inputs": [TENSOR]}, "the data of image must be a list of 1 base64 strings"),
        ({"inputs": [PLAIN | {"data": "YQ=="}]}, "the data of image must be a list of 1 base64 strings"),
        ({"inputs": [PLAIN | {"shape": [2], "data": ["YQ==", 1]}]}, "must be a list of 2 base64 strings"),
        ({"inputs": [PLAIN | {"data": [1]}]}, "the data of image must be a list of 1 base64 strings"),
        ({"inputs": [PLAIN | {"data": [["YQ==", "YQ=="]]}]}, "the data of image must be a list of 1 base64 strings"),
        ({"inputs": [PLAIN | {"parameters": []}]}, "parameters must be a JSON object"),
        ({"inputs": [TENSOR | {"parameters": {"binary_data_size": 1}}]}, "binary_data_size is 1, 0 bytes follow"),
        ({"parameters": {"topk": 1}}, "in the request's parameters 'topk' is not read"),
        ({"outputs": [1]}, "an output must be a JSON object"),
        ({"outputs": [{"name": "label", "parameters": {"classification": 1}}]}, "bad_parameter: label asks for"),
        (
            {"inputs": [PLAIN | {"parameters": {"shared_memory_region": "r"}}]},
            "bad_parameter: image asks for shared memory",
        ),
    ],
)
def test_what_cannot_be_asked_is_told(head: dict[str, Any], told: str) -> None:
    with pytest.raises(ServiceError, match=told):
        asked(**head)


@pytest.mark.parametrize("length", ["3", "-1", "two", ""])
def test_a_head_s_length_is_a_number_within_the_body(length: str) -> None:
    with pytest.raises(
        ServiceError, match=f"bad_request: Inference-Header-Content-Length is '{length}', the body has 2 bytes"
    ):
        _parse(b"{}", length, CONTRACT, 4)


@pytest.mark.parametrize(
    "head",
    [
        {"inputs": [TENSOR | {"name": "\x7f" * (1 << 20)}]},
        {"inputs": [TENSOR | {"datatype": "\x7f" * (1 << 20)}]},
        {"inputs": [TENSOR | {"datatype": ["\x7f" * (1 << 20)]}]},
        {"inputs": [TENSOR | {"parameters": {"binary_data_size": "\x7f" * (1 << 20)}}]},
        {"inputs": [PLAIN], "parameters": {"top_k": ["\x7f" * (1 << 20)]}},
        {"inputs": [PLAIN], "outputs": [{"name": "\x7f" * (1 << 20)}]},
    ],
)
def test_what_is_long_is_not_quoted_whole(head: dict[str, Any]) -> None:
    """Each of these letters has four in quotation marks."""
    text = json.dumps(head, ensure_ascii=False).encode()
    tracemalloc.start()
    try:
        with pytest.raises(ServiceError):
            _parse(text, None, CONTRACT, 4)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()
