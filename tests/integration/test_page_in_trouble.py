"""The page where something fails: files, answers, models, keys, the service. In a real Chromium."""

from __future__ import annotations

import re
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from eca_service.keys import make
from selenium.webdriver.common.keys import Keys

from tests.integration.chromium import Browser
from tests.integration.conftest import FRESH, MODEL, OTHER, Service, ending, ready, start
from tests.integration.page import DOG, SHIP, answered, named, opened
from tests.integration.test_reload import publish, served, until

EXPECTED = "the server responded with a status of"  # how the browser notes an answer such as 415
# The page's next `times` answers to what has `part` in its address are cut off.
CUT = """
let [part, times] = arguments;
const whole = window.fetch;
const cut = { start: (body) => { body.enqueue(new TextEncoder().encode("{")); body.error(new TypeError("cut off")); } };
window.fetch = async (path, given) =>
  path.includes(part) && times-- > 0 ? new Response(new ReadableStream(cut)) : whole(path, given);
"""


@pytest.fixture(scope="module")
def service(undisturbed: Service) -> Service:
    """Nothing here disturbs it."""
    return undisturbed


@contextmanager
def held(service: Service, requests: int) -> Iterator[None]:
    """So many requests are being answered meanwhile: their bodies do not come."""
    port = int(service.url.rpartition(":")[2])
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(requests)]
    try:
        for connection in sockets:
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        yield
    finally:
        for connection in sockets:
            connection.close()


def test_a_text_file_is_an_error_in_words(chromium: Browser, service: Service) -> None:
    opened(chromium, service)
    chromium.give(b"hello", "notes.txt")
    chromium.until(lambda: chromium.text("#notice-title"))
    assert chromium.text("#notice-title") == "The image's format is not supported"
    assert "JPEG, PNG" in chromium.text("#notice-text")
    assert chromium.text("#answer") == ""
    assert [line for line in chromium.complaints() if EXPECTED not in line] == []
    chromium.give(SHIP, "ship.jpg")
    answered(chromium, "ship")
    assert chromium.text("#notice") == "", "the next picture takes the error away"
    chromium.give(b"", "empty.jpg")
    chromium.until(lambda: chromium.text("#notice-title") == "The file is empty")
    assert chromium.text("#notice-text").startswith("The file empty.jpg has no bytes"), "called as it is called"
    chromium.give(b"", "", "drop")
    chromium.until(lambda: chromium.text("#notice-title") == "That is not a file")


def test_a_file_that_goes_is_still_answered(chromium: Browser, service: Service) -> None:
    """The page holds what it has read; what it can read no more is a sentence."""
    opened(chromium, service)
    keep = "addEventListener('change', (event) => { window.kept = event.target.files[0] }, { capture: true })"
    chromium.run(keep)
    chromium.give(DOG, "dog.jpg", "choose")
    answered(chromium, "dog")
    (chromium.folder / "dog.jpg").unlink()
    chromium.run("const w = document.getElementById('wanted'); w.value = 3; w.dispatchEvent(new Event('change'))")
    answered(chromium, "cat")
    again = """
      const carried = new DataTransfer();
      carried.items.add(window.kept);
      document.querySelector("main").dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true }));
    """
    chromium.run(again)
    chromium.until(lambda: chromium.text("#notice-title") == "The file cannot be read")
    assert "The file dog.jpg was moved" in chromium.text("#notice-text")
    assert chromium.text("#answer") == ""


def test_an_answer_that_is_cut_off_is_asked_for_again(chromium: Browser, service: Service) -> None:
    opened(chromium, service)
    chromium.run(CUT, "v1/compare", 1)
    chromium.give(DOG, "dog.jpg")
    chromium.until(lambda: chromium.text("#notice-title") == "The service cannot be reached")
    answered(chromium, "dog")
    assert chromium.text("#notice") == ""


def test_the_answer_stays_where_its_map_cannot_be_had(chromium: Browser, service: Service) -> None:
    opened(chromium, service)
    chromium.run(CUT, "explain", 99)
    chromium.give(DOG, "dog.jpg")
    chromium.until(lambda: chromium.text("#notice-title") == "The service cannot be reached")
    chromium.run("document.getElementById('notice-stop').click()")
    chromium.until(lambda: chromium.text("#notice") == "")
    assert "dog" in chromium.text("#verdict")
    assert chromium.text(".card[data-model] .says").startswith("dog")
    assert "" not in named(chromium, "image"), "a screen reader is told what it is, also without a map"


def test_what_the_page_cannot_understand_is_told(chromium: Browser, service: Service) -> None:
    opened(chromium, service)
    chromium.run("const whole = fetch; window.fetch = (path) => whole('livez')")
    chromium.give(DOG, "dog.jpg")
    chromium.until(lambda: chromium.text("#notice-title") == "This page failed")
    assert chromium.text("#answer") == ""
    assert any("TypeError" in line for line in chromium.complaints())


def test_a_new_version_of_a_model_is_shown_as_it_is(chromium: Browser, repository: Path, tmp_path: Path) -> None:
    """What the page knew of the old one counts no more; whatever its labels are, they are words and fit."""
    own = shutil.copytree(repository, tmp_path / "repository")
    running = start(own, tmp_path)

    def other_labels(contract: dict[str, Any], staged: Path) -> None:
        contract["labels"] = [f"<b>{label}</b>{100 * '_'}" for label in contract["labels"]]
        contract["parameters"] = 12_340_000

    with ending(running):
        opened(chromium, running)
        chromium.give(DOG, "dog.jpg")
        answered(chromium, "dog")
        publish(own, 2, other_labels)
        until(lambda: served(running) == 2, running)
        chromium.run("document.querySelectorAll('.bars button')[1].click()")
        chromium.until(lambda: chromium.text("#notice-title") == "The model has changed")
        chromium.run("document.getElementById('notice-again').click()")
        assert answered(chromium, "<b>dog</b>") == [MODEL]
        assert "version 2 · 12.3 M weights" in chromium.text(".card .which")
        assert chromium.run("return document.querySelector('#wanted').selectedOptions[0].text").startswith("<b>dog</b>")
        for width in (1280, 390):
            opened(chromium, running, width)
            chromium.give(DOG, f"{100 * 'dog'}.jpg")
            answered(chromium, "<b>dog</b>")
            assert chromium.run("return document.documentElement.scrollWidth") <= width, "nothing lies beside the page"


def test_one_that_fails_stands_beside_the_others(chromium: Browser, repository: Path, tmp_path: Path) -> None:
    """Its long sentence does not pull their parts asunder, nor does it squeeze the mark of the service's state."""
    own = shutil.copytree(repository, tmp_path / "repository")
    with (own / OTHER / "1" / "model.onnx").open("r+b") as engine:
        engine.truncate(1000)
    running = start(own, tmp_path)
    try:
        running.await_ready(f"/v2/models/{MODEL}/ready")
        chromium.open(running.url + "/")
        chromium.give(DOG, "dog.jpg")
        assert answered(chromium, "dog") == [MODEL]
        chromium.until(lambda: OTHER in chromium.text("#service"))
        assert chromium.text(".card .failed").startswith("model_not_ready: ")
        distance = """
          const box = (selector) => document.querySelector(".card" + selector).getBoundingClientRect();
          return box(arguments[1]).top - box(arguments[0]).bottom;
        """
        assert chromium.run(distance, ":has(.failed) h3", ":has(.failed) .which") < 20
        assert chromium.run(distance, "[data-model] .says", "[data-model] .bars") < 40
        assert chromium.run("return getComputedStyle(document.getElementById('service'), '::before').width") == "9px"
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)


def test_busy_is_told_and_tried_again(chromium: Browser, repository: Path, tmp_path: Path) -> None:
    with ready(repository, tmp_path, max_inflight_images=8) as running:
        opened(chromium, running)
        with held(running, 8):
            chromium.until(lambda: "eca_inflight 8.0" in FRESH.get(running.url + "/metrics").text)
            chromium.give(DOG, "dog.jpg")
            chromium.until(lambda: chromium.text("#notice-title"))
            assert chromium.text("#notice-title") == "The service is busy"
            assert re.match(r"Trying again in \d+ s, try 2 of 8", chromium.text("#notice-count"))
        answered(chromium, "dog")
        assert chromium.text("#notice") == ""
        with held(running, 8):
            chromium.until(lambda: "eca_inflight 8.0" in FRESH.get(running.url + "/metrics").text)
            chromium.give(SHIP, "ship.jpg")
            chromium.until(lambda: chromium.text("#notice-stop"))
            chromium.run("document.getElementById('notice-stop').click()")
            chromium.until(lambda: chromium.text("#notice-title") == "Stopped")
        chromium.run("document.getElementById('notice-again').click()")
        answered(chromium, "ship")
        running.process.send_signal(signal.SIGSTOP)
        chromium.run("document.dispatchEvent(new Event('visibilitychange'))")
        try:
            chromium.until(lambda: chromium.text("#service") == "no answer")
        finally:
            running.process.send_signal(signal.SIGCONT)
        chromium.until(lambda: chromium.text("#service") == "ready")
    chromium.give(DOG, "dog.jpg")
    chromium.until(lambda: chromium.text("#notice-title") == "The service cannot be reached")


def test_a_key_is_asked_for_kept_in_the_tab_and_forgotten(chromium: Browser, repository: Path, tmp_path: Path) -> None:
    secret, line = make("people")
    (tmp_path / "keys").write_text(line + "\n")
    with ready(repository, tmp_path, api_keys_file=tmp_path / "keys") as running:
        opened(chromium, running)
        chromium.give(DOG, "dog.jpg")
        chromium.until(lambda: chromium.text("#key-dialog"))
        assert "a key is needed" in chromium.text("#key-why")
        chromium.press(*"wrong", Keys.ENTER)
        chromium.until(lambda: "not known here" in chromium.text("#key-why"))
        chromium.run("document.getElementById('key').value = arguments[0]", f"\N{LEFT DOUBLE QUOTATION MARK}{secret}")
        chromium.press(Keys.ENTER)
        assert chromium.run("return document.getElementById('key').validity.patternMismatch"), "no header can carry it"
        chromium.run("document.getElementById('key').value = arguments[0]", f" {secret} ")
        chromium.press(Keys.ENTER)
        answered(chromium, "dog")
        assert chromium.text("#key-dialog") == ""
        opened(chromium, running)
        chromium.give(SHIP, "ship.jpg")
        answered(chromium, "ship")
        stored = "return JSON.stringify({...localStorage}) + document.cookie"
        assert chromium.run(stored) == "{}", "nowhere but in the tab"
        chromium.run("document.getElementById('key-button').click()")
        chromium.run("document.getElementById('key-forget').click()")
        chromium.give(DOG, "dog.jpg")
        chromium.until(lambda: chromium.text("#key-dialog"))
        chromium.run("document.getElementById('key-cancel').click()")
        chromium.until(lambda: chromium.text("#notice-title") == "A valid key is needed")
        chromium.driver.find_element("id", "notice-again").click()
        chromium.until(lambda: chromium.text("#key-dialog"))
        chromium.press(*secret, Keys.ENTER)
        answered(chromium, "dog")
        forbid = "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('no') } })"
        script = chromium.command("Page.addScriptToEvaluateOnNewDocument", source=forbid)
        try:
            opened(chromium, running)
        finally:
            chromium.command("Page.removeScriptToEvaluateOnNewDocument", **script)
        chromium.give(DOG, "dog.jpg")
        chromium.until(lambda: chromium.text("#key-dialog"))
        chromium.press(*secret, Keys.ENTER)
        answered(chromium, "dog")
