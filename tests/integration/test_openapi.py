"""What /docs shows works when it is pasted: every example body, every curl line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import validator_for

from tests.integration.conftest import FRESH, ROOT, Service

POSTS = {
    "/v1/classify",
    "/v1/models/{model}/classify",
    "/v1/models/{model}/versions/{version}/classify",
    "/v1/models/{model}/explain",
    "/v1/compare",
    "/v2/models/{model}/infer",
    "/v2/models/{model}/versions/{version}/infer",
}


@pytest.fixture(scope="module")
def service(undisturbed: Service) -> Service:
    """Nothing here disturbs it."""
    return undisturbed


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = FRESH.get(service.url + "/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The address, its examples filled in, and what is said of it, of every POST with a body."""
    for path, item in document["paths"].items():
        if "requestBody" in item.get("post", {}):
            values = {p["name"]: p["example"] for p in item["post"].get("parameters", []) if p["in"] == "path"}
            yield path.format(**values), item["post"]


def test_every_post_has_an_example(document: dict[str, Any]) -> None:
    described = {path for path, item in document["paths"].items() if "requestBody" in item.get("post", {})}
    assert described == {path for path, item in document["paths"].items() if "post" in item} == POSTS


def test_every_example_body_is_answered_as_shown(service: Service, document: dict[str, Any]) -> None:
    for path, operation in operations(document):
        example = operation["requestBody"]["content"]["application/json"]["example"]
        answer = FRESH.post(service.url + path, json=example, headers={"accept": "application/json"})
        assert answer.status_code == 200, f"{path}: {answer.text}"
        shown = operation["responses"]["200"]["content"]["application/json"]["example"]
        assert answer.json().keys() == shown.keys()
        assert '"dog"' in answer.text
        if results := shown.get("results"):
            assert answer.json()["results"][0].keys() == results[0].keys()


def test_every_curl_line_works(service: Service, document: dict[str, Any], tmp_path: Any) -> None:
    lines = [line for _, op in operations(document) for line in re.findall(r"```sh\n(.*?)\n```", op["description"])]
    assert len(lines) == len(POSTS)
    for line in lines:
        assert service.url in line
        command = line.replace("map.png", str(tmp_path / "map.png"))
        done = subprocess.run(
            ["bash", "-c", f"{command} -sS --fail-with-body"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        if "map.png" not in line:
            assert '"dog"' in done.stdout
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_the_error_shown_is_an_error(service: Service, document: dict[str, Any]) -> None:
    for path, operation in operations(document):
        shown = operation["responses"]["default"]["content"]["application/problem+json"]["example"]
        answer = FRESH.post(service.url + path, content=b"")
        assert answer.status_code == shown["status"]
        assert answer.json().keys() - {"error"} == shown.keys()
        assert json.dumps(shown).count(shown["code"]) == 2


def test_every_example_is_as_its_schema_says(document: dict[str, Any]) -> None:
    checked = 0
    for _, operation in operations(document):
        for holder in (operation["requestBody"], *operation["responses"].values()):
            for content in holder["content"].values():
                if "example" in content:
                    schema = {**content["schema"], "components": document["components"]}
                    validator_for(schema).validate(content["example"])
                    checked += 1
    assert checked == 3 * len(POSTS), "a body, an answer and an error of each"


def test_every_header_that_is_described_is_sent(service: Service, document: dict[str, Any]) -> None:
    """Besides those of all answers, which Schemathesis looks for."""
    for path, operation in operations(document):
        example = operation["requestBody"]["content"]["application/json"]["example"]
        binary = {"parameters": {"binary_data_output": True}} if "inputs" in example else {}
        answer = FRESH.post(service.url + path, json=example | binary)
        assert answer.status_code == 200
        assert operation["responses"]["200"]["headers"].keys() <= {name.title() for name in answer.headers}, path


def test_a_version_is_named_in_the_path_or_not_at_all(service: Service, document: dict[str, Any]) -> None:
    """Below /v2 it was a query parameter too, of which no protocol knows, and then passed over."""
    for path, item in document["paths"].items():
        for operation in item.values():
            told = [one["in"] for one in operation.get("parameters", []) if one["name"] == "version"]
            assert told == (["path"] if "{version}" in path else []), path
    metadata = FRESH.get(f"{service.url}/v2/models/resnet14-eca?version=7")
    assert (metadata.status_code, metadata.json()["code"]) == (400, "bad_request")


@pytest.mark.parametrize("examples", [4, pytest.param(300, marks=pytest.mark.fuzz)])
def test_every_answer_is_as_described(
    service: Service, document: dict[str, Any], tmp_path: Path, examples: int
) -> None:
    """Schemathesis asks for all that the document says and more: statuses, types, schemas, wrong methods and data.

    Where the document says `binary` it cannot know that an image is wanted: whether good data is refused is left out.
    So are deadlines: it takes each 504 for a failure.
    """
    asked = deepcopy(document)
    for _, operation in operations(asked):
        operation["parameters"] = [one for one in operation["parameters"] if one["name"] != "X-Request-Timeout-Ms"]
    (tmp_path / "openapi.json").write_text(json.dumps(asked))
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(tmp_path / "openapi.json"), "--seed", "1"]
    command += ["--url", service.url]
    command += ["--max-examples", str(examples), "--exclude-checks", "positive_data_acceptance"]
    command += ["--phases", "examples,coverage,fuzzing" + (",stateful" if examples > 4 else "")]
    command += [
        "--request-timeout",
        "30",
        "--generation-database",
        "none",
        "--no-color",
        "--suppress-health-check",
        "all",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    (generated,) = re.findall(r"(\d+) generated, \1 passed", done.stdout)
    assert int(generated) > 200
