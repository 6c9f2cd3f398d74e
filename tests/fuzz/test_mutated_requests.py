"""Mutated inference requests: read as what they say, or refused as the caller's error; never anything else."""

from __future__ import annotations

import json
import random
import time

import pytest
from eca_service.errors import ServiceError

from tests.fuzz.inference_requests import binary, parse_binary, parse_http, whole_requests
from tests.fuzz.mutations import CHANGES


def test_the_requests_that_are_mutated_are_whole() -> None:
    for body, header_length in whole_requests():
        assert list(parse_http(body, header_length)) == [b"\xff\xd8\xff an image", b"", b"\x89PNG"]


@pytest.mark.parametrize("count", [2000, pytest.param(200_000, marks=pytest.mark.fuzz)])
def test_mutated_requests(count: int) -> None:
    chance = random.Random(count)
    seeds = whole_requests()
    refused, codes = 0, set()
    for _ in range(count):
        body, header_length = chance.choice(seeds)
        data = bytearray(body)
        for _ in range(chance.randint(1, 3)):
            if data:
                chance.choice(CHANGES)(data, chance)
        if chance.random() < 0.3:
            header_length = chance.choice((None, "", "-1", "1e9", "²", "0", str(len(data)), str(chance.randrange(400))))
        try:
            images = parse_http(bytes(data), header_length)
            assert all(isinstance(image, bytes | ServiceError) for image in images)
        except ServiceError as error:
            refused += 1
            codes.add(error.code)
    assert codes <= {"bad_request", "bad_parameter"}
    assert 0.5 * count < refused < count, "most are damaged, some are still whole"


@pytest.mark.parametrize("count", [2000, pytest.param(200_000, marks=pytest.mark.fuzz)])
def test_mutated_tensors(count: int) -> None:
    chance, codes = random.Random(count), set()
    for _ in range(count):
        images = [chance.randbytes(chance.choice((0, 1, 4, 30))) for _ in range(chance.randint(1, 5))]
        data = bytearray(binary(images))
        assert parse_binary(bytes(data), len(images)) == images
        chance.choice(CHANGES)(data, chance)
        told = chance.choice((len(images), len(images), 0, 1, 1 << 40))
        try:
            found = parse_binary(bytes(data), told)
        except ServiceError as error:
            codes.add(error.code)
        else:
            assert binary(found) == bytes(data)
            assert len(found) == told
    assert codes == {"bad_request"}


def test_a_million_images_are_not_unpacked() -> None:
    many = 4_000_000
    tensor = {"name": "image", "shape": [many], "datatype": "BYTES", "parameters": {"binary_data_size": 4 * many}}
    head = json.dumps({"inputs": [tensor]}).encode()
    started = time.thread_time()
    with pytest.raises(ServiceError, match="4000000 images, at most 64"):
        parse_http(head + bytes(4 * many), str(len(head)))
    assert time.thread_time() - started < 0.1
