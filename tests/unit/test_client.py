"""What the client tries again, how long it waits, and how it spreads files over requests."""

from __future__ import annotations

import asyncio
import pickle
from importlib.resources import files
from pathlib import Path

import pytest
from eca_service.client import AsyncClient, Client, calls
from eca_service.client.failures import FATAL, OWN, ClientError, Retry
from eca_service.client.files import as_names, batches
from eca_service.errors import CODES


@pytest.mark.parametrize("code", [*CODES, *OWN])
def test_what_is_tried_again_is_what_waiting_helps(code: str) -> None:
    pause_s = Retry().pause_s(ClientError(code, ""), 1, 60)
    helps = code == "unreachable" or (code in CODES and CODES[code].retry_after_s is not None)
    assert (pause_s is not None) == helps
    if helps and code != "unreachable":
        assert code not in FATAL


def test_pauses_honour_the_service_and_the_deadline() -> None:
    retry = Retry(attempts=4, first_s=0.1)
    told = ClientError("overloaded", "", retry_after_s=7)
    assert retry.pause_s(told, 1, 60) == 7
    assert retry.pause_s(told, 1, 6.9) is None, "the answer would come too late"
    assert retry.pause_s(told, 4, 60) is None, "that was the last try"
    untold = ClientError("backend_unavailable", "")
    pauses = [retry.pause_s(untold, attempt, 60) or 0 for attempt in (1, 2, 3)]
    for pause, about in zip(pauses, (0.1, 0.2, 0.4), strict=True):
        assert 0.75 * about <= pause <= 1.25 * about
    assert len({retry.pause_s(untold, 1, 60) for _ in range(20)}) > 1, "callers do not come back together"


def test_files_share_requests_within_bounds(tmp_path: Path) -> None:
    sizes = {"a": 10, "b": 10, "c": 5 << 20, "d": 5 << 20, "e": 20 << 20, "f": 10}
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    paths = [tmp_path / name for name in (*sizes, "missing")]
    found = [[path.name for path in batch] for batch in batches(paths, 3)]
    assert found == [["a", "b", "c"], ["d"], ["e"], ["f", "missing"]]
    assert list(batches(str(tmp_path / "a"), 3)) == [[tmp_path / "a"]], "one path, not its letters"
    with pytest.raises(ValueError, match="at least one file"):
        list(batches(paths, 0))


@pytest.mark.parametrize(("models", "named"), [("a", "a"), (["a", "b", "a"], "a,b"), ([], ""), (None, None)])
def test_what_is_compared(models: str | list[str] | None, named: str | None) -> None:
    assert calls.compare(b"", models, None).parameters.get("models") == named


def test_models_are_named_once() -> None:
    assert as_names(None) == []
    assert as_names("a") == ["a"]
    assert as_names(["a", "b", "a"]) == ["a", "b"]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999", "grpc://127.0.0.1:99999", "http://[::1", f"http://{'a' * 70}"]
)
async def test_what_cannot_be_an_address_is_an_error_of_ours(url: str) -> None:
    """The libraries below raise what they like: an ExceptionGroup, a UnicodeError, an error of every other call's."""

    def blocking() -> None:
        with Client(url, retry=Retry(attempts=1)) as client:
            client.classify(b"x")

    async def looping() -> None:
        async with AsyncClient(url, retry=Retry(attempts=1)) as client:
            await client.classify(b"x")

    for ask in (asyncio.to_thread(blocking), looping()):
        with pytest.raises(ClientError) as told:
            await ask
        assert told.value.code in {"unsupported", "unreachable"}


def test_an_error_reaches_another_process_whole() -> None:
    """As what a pool's workers raise does; one that cannot be made anew there breaks the pool."""
    error = ClientError("overloaded", "too many", retry_after_s=7, request_id="a1")
    passed = pickle.loads(pickle.dumps(error))
    assert (str(passed), vars(passed)) == ("overloaded: too many", vars(error))


def test_callers_have_its_types() -> None:
    """By PEP 561 a checker looks for the marker: without it every answer is Any."""
    assert files("eca_service").joinpath("py.typed").is_file()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_no_error_names_the_password_of_a_proxy(scheme: str) -> None:
    for url in (f"{scheme}://me:secret@127.0.0.1:1", f"{scheme}://me:secret@127.0.0.1:none"):
        with pytest.raises(ClientError) as failure:
            async with AsyncClient(url, timeout_s=0.2) as client:
                await client.classify(b"x", model="m")
        assert "127.0.0.1" in str(failure.value)
        assert "secret" not in str(failure.value)
