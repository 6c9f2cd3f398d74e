"""The commands that ask a running service: classify, explain, evaluate."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from eca_service.client import Classification, Client
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.integration.conftest import MODEL, OTHER, ROOT, Service, ending, ready, run, start
from tests.ports import free_port

IMAGES = ROOT / "build" / "demo" / "images"
FAMILY = ("resnet14-eca", "resnet14-se")


@pytest.fixture(scope="module")
def service(undisturbed: Service) -> Service:
    """Nothing here disturbs it."""
    return undisturbed


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo images in folders named by their classes; one folder by its number, and one file that is no image."""
    folder = tmp_path_factory.mktemp("labelled")
    for path in IMAGES.iterdir():
        label = path.name.partition("-")[0]
        place = folder / {"ship": "8", "frog": "FROG"}.get(label, label)
        place.mkdir(exist_ok=True)
        (place / path.name).write_bytes(path.read_bytes())
    (folder / "cat" / "broken.jpg").write_text("hello")
    (folder / "empty").mkdir()
    return folder


def test_a_folder_as_json(service: Service) -> None:
    done = run("eca_service", "classify", IMAGES, "--url", service.url, "--json", "--top-k", 2)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["file"] for row in rows] == sorted(str(path) for path in IMAGES.iterdir())
    assert {len(row["predictions"]) for row in rows} == {2}


def test_a_pattern_as_csv_by_two_models(service: Service) -> None:
    pattern = IMAGES / "dog-[12].jpg"
    arguments = [part for model in FAMILY for part in ("--model", model)]
    done = run("eca_service", "classify", pattern, "missing.jpg", "--url", service.url, "--csv", *arguments)
    assert done.returncode == 1
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    named = [(Path(row["file"]).name, row["model"], row["error"]) for row in rows if row["rank"] in {"1", ""}]
    assert named == [
        *((f"dog-{number}.jpg", model, "") for number in (1, 2) for model in FAMILY),
        *(("missing.jpg", model, "unreadable") for model in FAMILY),
    ]
    assert {row["label"] for row in rows if row["rank"] == "1"} == {"dog"}
    assert "2 of 6 failed" in done.stderr


def test_a_name_that_is_no_utf_8_is_written_as_it_is(service: Service, tmp_path: Path) -> None:
    """Where the locale is of UTF-8, as on most machines, and Python is strict about it."""
    name = os.fsencode(tmp_path) + b"/dog \xe4.jpg"
    with open(name, "wb") as file:
        file.write((IMAGES / "dog-2.jpg").read_bytes())
    for form in ("--table", "--csv"):
        command = [sys.executable, "-c", "from eca_service.cli import main; main()", "classify", str(tmp_path), form]
        strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
        done = subprocess.run([*command, "--url", service.url], env=strict, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert name in done.stdout


def test_what_is_on_this_machine_is_asked_through_no_proxy(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the gateway its Triton, by the commands the gateway: the proxy, for what is outside, would not find them."""
    proxied = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), f"http://127.0.0.1:{free_port()}")
    proxied |= {"no_proxy": "", "NO_PROXY": ""}
    with monkeypatch.context() as patch:
        for name, value in proxied.items():
            patch.setenv(name, value)
        running = start(repository, tmp_path)
    with ending(running):
        for url in (running.url, f"grpc://localhost:{running.grpc_port}"):
            done = run("eca_service", "classify", IMAGES / "dog-1.jpg", "--url", url, environment=proxied)
            assert (done.returncode, "dog" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("classify", str(IMAGES), "--model", "nobody"), "there is no model 'nobody'"),
        (("classify", "nothing/*.jpg"), "nothing/*.jpg holds no image"),
        (("explain", str(IMAGES / "dog-1.jpg"), "--class", "unicorn"), "has no class 'unicorn'"),
        (("evaluate", str(ROOT / "build" / "demo")), "the folder 'images' is not named after a class"),
        (("evaluate", str(IMAGES)), "has no sub-folder with images"),
        (("classify", str(IMAGES), "--url", "http://127.0.0.1:9"), "`eca-serve up` starts one"),
        (("classify", str(IMAGES), "--url", "{}/v1"), "/v1 no route has this method and path; /docs lists them"),
        (("classify", str(IMAGES), "--api-key-file", "nothing"), "ECA_API_KEY_FILE=nothing cannot be read"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(service: Service, arguments: tuple[str, ...], sentence: str) -> None:
    url = () if "--url" in arguments else ("--url", service.url)
    done = run("eca_service", *(argument.replace("{}", service.url) for argument in arguments), *url)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_explain_draws_and_tells(service: Service, tmp_path: Path) -> None:
    done = run("eca_service", "explain", IMAGES / "dog-2.jpg", "-o", tmp_path / "map.png", "--url", service.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"what speaks for dog (99.7%) in {IMAGES / 'dog-2.jpg'}, as {MODEL} sees it" in done.stdout
    with Image.open(tmp_path / "map.png") as drawn, Image.open(IMAGES / "dog-2.jpg") as dog:
        assert drawn.size == dog.size
        assert np.abs(np.asarray(drawn).astype(int) - np.asarray(dog)).max() > 30
    done = run("eca_service", "explain", IMAGES / "dog-2.jpg", "--json", "--class", "cat", "--url", service.url)
    assert json.loads(done.stdout)["explained"]["label"] == "cat"
    done = run("eca_service", "explain", IMAGES / "dog-2.jpg", "-o", tmp_path / "no" / "map.png", "--url", service.url)
    assert (done.returncode, "cannot be written" in done.stderr) == (1, True)


COMMAND = [sys.executable, "-c", "from eca_service.cli import main; main()"]


def piped(image: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """A command line of ours that has the image as its standard input."""
    return subprocess.run([*COMMAND, *arguments], input=image, capture_output=True, check=False)


@pytest.mark.parametrize("models", [(), FAMILY[1:], FAMILY])
def test_an_image_may_come_by_standard_input(service: Service, models: tuple[str, ...]) -> None:
    """As from `curl` or `convert`: `-` was a file that does not exist."""
    arguments = [part for model in models for part in ("--model", model)]
    done = piped((IMAGES / "dog-2.jpg").read_bytes(), "classify", "-", "--json", "--url", service.url, *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["file"], row["model"]) for row in rows] == [("-", model) for model in models or (MODEL,)]
    assert {row["predictions"][0]["label"] for row in rows} == {"dog"}


def test_what_comes_by_standard_input_is_explained(service: Service) -> None:
    done = piped((IMAGES / "dog-2.jpg").read_bytes(), "explain", "-", "-o", "-", "--url", service.url)
    assert b"-: what speaks for dog" in done.stderr
    with Image.open(io.BytesIO(done.stdout), formats=["PNG"]) as drawn, Image.open(IMAGES / "dog-2.jpg") as dog:
        assert drawn.size == dog.size


def test_what_standard_input_has_not_is_told(service: Service, tmp_path: Path) -> None:
    done = piped(b"hello", "classify", "-", "--url", service.url)
    assert (done.returncode, b"-  unsupported_image_format" in done.stderr) == (1, True)
    done = piped(b"hello", "classify", "-", str(IMAGES / "dog-2.jpg"), "--url", service.url)
    assert (done.returncode, b"give no other images with it" in done.stderr) == (2, True)
    with (tmp_path / "written").open("w") as unreadable:
        command = [*COMMAND, "classify", "-", "--url", service.url]
        told = subprocess.run(command, stdin=unreadable, capture_output=True, check=False, text=True)
    assert (told.returncode, "unreadable: standard input: Bad file descriptor" in told.stderr) == (1, True)


def test_evaluate_counts_what_is_right(service: Service, labelled: Path, tmp_path: Path) -> None:
    models = [part for model in FAMILY for part in ("--model", model)]
    picture = tmp_path / "confusion.png"
    done = run("eca_service", "evaluate", labelled, *models, "--json", "--confusion", picture, "--url", service.url)
    assert done.returncode == 1, "one image is none"
    assert "broken.jpg: unsupported_image_format" in done.stderr
    assert "1 of 61 images failed" in done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] == 1
    for model in FAMILY:
        answers = run("eca_service", "classify", IMAGES, "--model", model, "--json", "--url", service.url)
        rows = [json.loads(line) for line in answers.stdout.splitlines()]
        right = [Path(row["file"]).name.startswith(row["predictions"][0]["label"]) for row in rows]
        five = [
            Path(row["file"]).name.partition("-")[0] in [one["label"] for one in row["predictions"]] for row in rows
        ]
        figures = found["models"][model]
        assert figures["top1"] == pytest.approx(sum(right) / 60)
        assert figures["top5"] == pytest.approx(sum(five) / 60)
        assert np.trace(figures["confusion"]) == sum(right)
        assert {name: row["images"] for name, row in figures["classes"].items()} == dict.fromkeys(figures["classes"], 6)
    with Image.open(picture) as drawn:
        assert drawn.width > 2 * 560
        assert len(drawn.getcolors(1 << 20) or []) > 20
    nowhere = tmp_path / "none" / "confusion.png"
    done = run("eca_service", "evaluate", labelled, *models, "--confusion", nowhere, "--url", service.url)
    assert (done.returncode, f"{nowhere} cannot be written" in done.stderr) == (2, True)
    assert f"{found['models'][MODEL]['top1']:.2%}" in done.stdout
    assert done.stdout.splitlines()[0].split() == list(FAMILY)


def test_models_of_other_classes_are_evaluated_side_by_side(repository: Path, tmp_path: Path) -> None:
    """Four classes, in another order, two of one label: lines are by label, each model has its own best five."""
    weights = load_file(ROOT / "build" / "demo" / f"{OTHER}.safetensors")
    order = [5, 3, 8, 4]
    save_file(weights | {f"fc.{part}": weights[f"fc.{part}"][order] for part in ("weight", "bias")}, tmp_path / "four")
    (tmp_path / "labels.txt").write_text("dog\nwolf\nship\nwolf\n")
    served = tmp_path / "served"
    shutil.copytree(repository / MODEL, served / MODEL)
    labels = ("--labels", tmp_path / "labels.txt", "--images", IMAGES)
    assert run("eca_build", "compile", tmp_path / "four", "--repository", served, *labels).returncode == 0
    for label in ("ship", "dog"):
        (tmp_path / "labelled" / label).mkdir(parents=True)
        for path in IMAGES.glob(f"{label}-*.jpg"):
            shutil.copy(path, tmp_path / "labelled" / label)
    asked = ("evaluate", tmp_path / "labelled", "--model", MODEL, "--model", "four")
    with ready(served, tmp_path) as running:
        table = run("eca_service", *asked, "--url", running.url)
        told = run("eca_service", *asked, "--url", running.url, "--json")
        with Client(running.url) as client:
            found = client.compare(IMAGES / "dog-1.jpg", [MODEL, "four"])
    assert [len(one.predictions) for one in found.values() if isinstance(one, Classification)] == [5, 4]
    assert (table.returncode, table.stderr) == (0, "")
    lines = [line.split()[:3] for line in table.stdout.splitlines()[-2:]]
    classes = [json.loads(told.stdout)["models"][name]["classes"] for name in (MODEL, "four")]
    assert list(classes[1]) == ["dog", "wolf (1)", "ship", "wolf (3)"]
    shares = {label: [f"{one[label]['recall']:.1%}" for one in classes] for label in ("dog", "ship")}
    assert lines == [[label, *shares[label]] for label in ("dog", "ship")]


def test_a_bar_is_shown_to_a_person_alone(service: Service) -> None:
    """On a terminal, while the answers go into a file; an error has a line of its own."""
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-c", "from eca_service.cli import main; main()", "classify", str(IMAGES)]
    with subprocess.Popen(
        [*command, "none.jpg", "--url", service.url], stdout=subprocess.PIPE, stderr=terminal
    ) as process:
        os.close(terminal)
        assert process.stdout is not None
        lines = process.stdout.read().decode().splitlines()
        shown = b""
        while chunk := _read(reader):
            shown += chunk
        os.close(reader)
        assert process.wait(60) == 1
    assert len(lines) == 60
    assert b"/61" in shown
    assert b"\rnone.jpg " in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # its other side was closed
        return b""


def test_shells_are_helped() -> None:
    program = Path(sys.executable).with_name("eca-serve")
    asked = {"_ECA_SERVE_COMPLETE": "zsh_source"}
    done = subprocess.run([program], env=os.environ | asked, capture_output=True, text=True, check=False)
    assert "#compdef eca-serve" in done.stdout
    asked = {"COMP_WORDS": "eca-serve ex", "COMP_CWORD": "1", "_ECA_SERVE_COMPLETE": "zsh_complete"}
    done = subprocess.run([program], env=os.environ | asked, capture_output=True, text=True, check=False)
    assert "explain" in done.stdout
