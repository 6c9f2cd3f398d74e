"""The page on error codes says what the table says, of every code."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest
from docs.write_errors import PAGE, table, written
from eca_service.client.failures import OWN
from eca_service.errors import CODES, ServiceError, problem
from eca_service.imaging import decode

from tests.unit.test_contract import CONTRACT


@pytest.mark.parametrize("text", ["m" * 20_000, "\u00e4" * 20_000, "\U0001f600" * 20_000, "\n" * 20_000])
def test_what_a_caller_wrote_fits_into_a_status_of_grpc(text: str) -> None:
    """Which has 8 KiB, percent-encoded; else the caller is told another error."""
    error = ServiceError("model_not_found", f"there is no model {text!r}")
    assert error.detail.startswith("there is no model ")
    assert error.detail.endswith("...")
    assert len(quote(str(error))) < 8000
    assert ServiceError("internal", "x" * 2000).detail == "x" * 2000


def test_the_page_has_the_table() -> None:
    page = PAGE.read_text()
    assert table() in page, "python service/docs/write_errors.py"
    assert written(page) == page


def test_every_code_is_explained() -> None:
    sections = re.findall(r"^### (\w+)\n(.+)$", PAGE.read_text(), re.MULTILINE)
    assert [code for code, _ in sections] == list(CODES)
    assert all(text.endswith(".") for _, text in sections)


def test_the_client_s_own_codes_are_there() -> None:
    section = PAGE.read_text().partition("\n## What the client itself says\n")[2]
    assert dict(re.findall(r"^\| (\w+) \| (.+) \|$", section, re.MULTILINE)) == {"code": "means", **OWN}


def test_the_example_is_an_answer() -> None:
    shown = json.loads(re.search(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])  # type: ignore[index]
    assert shown == problem(ServiceError(shown["code"], shown["detail"]), shown["request_id"])


def test_the_example_s_sentence_is_the_decoder_s() -> None:
    shown = json.loads(re.search(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])  # type: ignore[index]
    with pytest.raises(ServiceError) as raised:
        decode(b"hello", CONTRACT.preprocessing, 1000)
    assert (raised.value.code, raised.value.detail) == (shown["code"], shown["detail"])


def test_every_code_says_what_to_do() -> None:
    for kind in CODES.values():
        assert kind.advice.endswith(".")
        assert not kind.title.endswith(".")
