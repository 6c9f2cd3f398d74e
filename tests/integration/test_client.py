"""The client library against the whole service: blocking and in an event loop, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from eca_service.client import AsyncClient, Classification, Client, ClientError, FileResult, Retry
from eca_service.contract import read
from PIL import Image

from tests.integration.conftest import DEMO, MODEL, ROOT, Service, ending, golden_png, ready, start
from tests.ports import free_port

IMAGES = sorted((ROOT / "build" / "demo" / "images").iterdir())
DOG = ROOT / "build" / "demo" / "images" / "dog-2.jpg"
every_way = pytest.mark.parametrize("way", ["http", "grpc", "http-loop", "grpc-loop"])
Ask = Callable[[Callable[[Any], Any]], Any]


@pytest.fixture(scope="module")
def service(undisturbed: Service) -> Service:
    """Nothing here disturbs it."""
    return undisturbed


def address(service: Service, way: str) -> str:
    return service.url if way.startswith("http") else f"grpc://127.0.0.1:{service.grpc_port}"


def asked(service: Service, way: str, call: Callable[[Any], Any], **options: Any) -> Any:
    """What `call` makes of a client, awaited where that is what the client wants."""
    url = options.pop("url", address(service, way))
    if not way.endswith("loop"):
        with Client(url, **options) as client:
            found = call(client)
            return list(found) if isinstance(found, Iterator) else found

    async def run() -> Any:
        async with AsyncClient(url, **options) as client:
            work = call(client)
            if isinstance(work, Awaitable):
                return await work
            return [one async for one in work]

    return asyncio.run(run())


@every_way
def test_one_image(service: Service, repository: Path, way: str) -> None:
    contract = read(repository / MODEL / "1")
    found = asked(service, way, lambda client: client.classify(golden_png(repository, MODEL), MODEL, top_k=10))
    scores = {one.index: one.score for one in found.predictions}
    for index, expected in enumerate(contract.golden.probabilities[0]):
        assert scores[index] == pytest.approx(expected, abs=contract.golden.tolerance)
    assert (found.model, found.version, found.best) == (MODEL, 1, found.predictions[0])
    assert [contract.labels[one.index] for one in found.predictions] == [one.label for one in found.predictions]
    assert set(found.timing_ms) == {"decode", "queue", "infer", "total"}
    assert found.request_id
    assert asked(service, way, lambda client: client.unready()) is None


@every_way
def test_what_was_done_to_an_image_is_told(service: Service, way: str) -> None:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(out, "JPEG", exif=exif)
    found = asked(service, way, partial(_classify_all, [DOG.read_bytes(), out.getvalue()]))
    assert [one.warnings for one in found] == [(), ("exif_rotated",)]


@every_way
def test_a_batch_keeps_its_places(service: Service, way: str, tmp_path: Path) -> None:
    images = [DOG, b"no image", tmp_path / "missing.jpg", DOG.read_bytes()]
    first, bad, missing, last = asked(service, way, lambda client: client.classify_batch(images))
    assert isinstance(first, Classification)
    assert first.best.label == last.best.label == "dog"
    assert len(first.predictions) == 5
    assert isinstance(bad, ClientError)
    assert (bad.code, missing.code) == ("unsupported_image_format", "unreadable")


@every_way
def test_bad_images_keep_their_places_too(service: Service, way: str) -> None:
    for images in ([DOG.read_bytes()[:-99], b"no image"], [b"no image"]):
        found = asked(service, way, partial(_classify_all, images))
        assert [error.code for error in found] == ["image_truncated", "unsupported_image_format"][-len(images) :]


@every_way
def test_any_time_may_be_given(service: Service, way: str) -> None:
    for timeout_s in (float("inf"), 1e7):
        found = asked(service, way, lambda client: client.classify(DOG), timeout_s=timeout_s)
        assert found.best.label == "dog"


@every_way
@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda client: client.classify(b"hello"), "unsupported_image_format"),
        (lambda client: client.classify(b""), "unsupported_image_format"),
        (lambda client: client.classify("no/such/file.jpg"), "unreadable"),
        (lambda client: client.classify(DOG, "nobody"), "model_not_found"),
        (lambda client: client.classify(DOG, f"x/../{MODEL}"), "model_not_found"),
        (lambda client: client.classify(DOG, f"{MODEL}/classify#"), "model_not_found"),
        (lambda client: client.classify(DOG, f"{MODEL}#?"), "model_not_found"),
        (lambda client: client.classify(DOG, MODEL, version=9), "version_not_found"),
        (lambda client: client.classify(DOG, MODEL, version=0), "version_not_found"),
        (lambda client: client.classify(DOG, version=1), "bad_parameter"),
        (lambda client: client.classify(DOG, top_k=99), "bad_parameter"),
        (lambda client: client.classify(DOG, top_k=10**30), "bad_parameter"),
    ],
)
def test_errors(service: Service, way: str, call: Callable[[Any], Any], code: str) -> None:
    with pytest.raises(ClientError) as told:
        asked(service, way, call)
    assert told.value.code == code
    assert str(told.value) == f"{code}: {told.value.detail}"


@every_way
def test_a_deadline_is_kept(service: Service, way: str) -> None:
    """What cannot be answered in time is told by the service, beforehand or afterwards, or else by the client."""
    started = time.monotonic()
    with pytest.raises(ClientError) as told:
        asked(service, way, lambda client: client.classify(DOG, timeout_s=0.001))
    assert told.value.code in {"deadline_exceeded", "overloaded"}
    assert time.monotonic() - started < 5


@every_way
def test_nobody_there_is_told_and_tried_again_meanwhile(service: Service, way: str) -> None:
    url = f"{way.partition('-')[0]}://127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(ClientError) as told:
        asked(service, way, lambda client: client.classify(DOG), url=url, retry=Retry(attempts=3, first_s=0.1))
    assert told.value.code == "unreachable"
    assert "`eca-serve up` starts one" in told.value.detail
    assert time.monotonic() - started >= 0.2, "two pauses"
    assert "no service answers" in asked(service, way, lambda client: client.unready(1), url=url)


@every_way
def test_many_files_in_their_order(service: Service, way: str, tmp_path: Path) -> None:
    (tmp_path / "note.jpg").write_text("hello")
    paths = [*IMAGES, tmp_path / "note.jpg", *IMAGES, tmp_path / "missing.jpg"]
    found: list[FileResult] = asked(service, way, lambda client: client.classify_files(paths, MODEL, concurrency=4))
    assert [result.path for result in found] == paths
    assert [result.error.code for result in found if result.error] == ["unsupported_image_format", "unreadable"]
    right = [result.path.name.startswith(result.answer.best.label) for result in found if result.answer]
    assert sum(right) > 0.7 * len(right)


@pytest.mark.parametrize("limit", [{"max_images": 3}, {"max_body_bytes": 3000}], ids=["images", "bytes"])
def test_a_service_that_takes_less_is_sent_fewer_files(repository: Path, tmp_path: Path, limit: dict[str, Any]) -> None:
    """Each file alone is well within its limits."""
    paths = [*IMAGES[:9], tmp_path / "missing.jpg", *IMAGES[9:12]]
    with ready(repository, tmp_path, **limit) as running:
        for way in ("http", "grpc", "http-loop", "grpc-loop"):
            found: list[FileResult] = asked(running, way, lambda client: client.classify_files(paths))
            assert [result.path for result in found] == paths
            assert [result.error.code for result in found if result.error] == ["unreadable"], way


@pytest.mark.parametrize("way", ["http", "http-loop"])
def test_several_models(service: Service, way: str) -> None:
    names = [weights.stem for weights in DEMO if weights.stem.startswith("resnet14")]
    compared = asked(service, way, lambda client: client.compare(DOG, top_k=3))
    assert sorted(compared) == names
    found = asked(service, way, lambda client: client.classify_files([DOG, "missing.jpg"], names, top_k=3))
    assert [(result.path, result.model) for result in found] == [
        (path, name) for path in (DOG, Path("missing.jpg")) for name in names
    ]
    for result in found[: len(names)]:
        assert result.answer is not None
        alone = asked(service, way, partial(_classify, result.model))
        for one, other in zip(result.answer.predictions, alone.predictions, strict=True):
            assert replace(one, score=0) == replace(other, score=0)
            assert one.score == pytest.approx(other.score, abs=1e-5)


def _classify(model: str, client: Any) -> Any:
    return client.classify(DOG, model, top_k=3)


def _classify_all(images: list[bytes], client: Any) -> Any:
    return client.classify_batch(images)


@pytest.mark.parametrize("way", ["http", "http-loop"])
def test_maps(service: Service, way: str) -> None:
    found = asked(service, way, lambda client: client.explain(DOG, MODEL, "cat", gates=True))
    assert sum(map(sum, found.map)) == pytest.approx(found.logit - found.bias, abs=1e-4)
    assert (found.explained.label, found.predictions[0].label) == ("cat", "dog")
    assert len(found.gates) == 6
    assert (found.crop.right, found.crop.bottom) == (32, 32)
    drawn = asked(service, way, lambda client: client.overlay(DOG, MODEL, 3))
    assert drawn.explained.label == "cat"
    with Image.open(io.BytesIO(drawn.png)) as picture:
        assert picture.size == (32, 32)
    assert asked(service, way, lambda client: client.default_model()) == MODEL
    assert MODEL in {model.name for model in asked(service, way, lambda client: client.models())}


def test_grpc_says_what_it_cannot(service: Service) -> None:
    with Client(address(service, "grpc")) as client, pytest.raises(ClientError, match="use the service's HTTP address"):
        client.explain(DOG, MODEL)
    with pytest.raises(ClientError, match="is not an address such as http"):
        Client("127.0.0.1:8080").classify(DOG)


def test_a_full_service_is_asked_again_until_it_answers(repository: Path, tmp_path: Path) -> None:
    """Six callers where two fit: some are refused, and all have their answers in the end."""
    running = start(repository, tmp_path, max_inflight_images=2)

    def ask(turn: int) -> str:
        way = ("http", "grpc")[turn % 2]
        with Client(address(running, way), retry=Retry(attempts=1)) as impatient:
            try:
                return impatient.classify(DOG).best.label
            except ClientError as error:
                refused[way].append((error.code, error.retry_after_s))
        with Client(address(running, way), timeout_s=60, retry=Retry(attempts=50)) as patient:
            return patient.classify(DOG).best.label

    with ending(running):
        refused: dict[str, list[tuple[str, float | None]]] = {"http": [], "grpc": []}
        with ThreadPoolExecutor(6) as pool:
            assert set(pool.map(ask, range(24))) == {"dog"}
        assert [set(told) for told in refused.values()] == [{("overloaded", 1)}] * 2
