"""The page, used as people use it, in a real Chromium against the whole service."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import signal
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from eca_service.keys import make
from PIL import Image, ImageChops, ImageOps, ImageStat
from selenium.webdriver.common.keys import Keys

from tests.integration.chromium import Browser, browser, missing
from tests.integration.conftest import DEMO, FRESH, MODEL, OTHER, ROOT, Service, start
from tests.integration.test_reload import publish, served, until
from tests.unit.image_files import turned_by_exif

DOG = (ROOT / "build" / "demo" / "images" / "dog-2.jpg").read_bytes()
SHIP = (ROOT / "build" / "demo" / "images" / "ship-1.jpg").read_bytes()
FAMILY = [weights.stem for weights in DEMO if weights.stem.startswith(MODEL.partition("-")[0])]
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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all tests here, where one can be had."""
    if reason := missing():
        pytest.skip(reason)
    with browser() as running:
        yield running


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


def opened(browser: Browser, service: Service, width: int = 1280) -> None:
    browser.open(service.url + "/", width)
    browser.until(lambda: browser.text("#service") == "ready")
    browser.complaints()


def answered(browser: Browser, label: str = "") -> list[str]:
    """The models shown, once each has its map; of `label`, where one is given."""
    script = """
      const cards = [...document.querySelectorAll(".card[data-model]")];
      const told = (card) => card.querySelector("figcaption").textContent.startsWith("What speaks for " + arguments[0]);
      return cards.length > 0 && cards.every(told) && cards.map((card) => card.dataset.model);
    """
    found: list[str] = browser.until(lambda: browser.run(script, label))
    return found


def named(browser: Browser, *roles: str) -> list[str]:
    """The names that a screen reader has for what is of these roles; empty where it has none."""
    nodes = browser.command("Accessibility.getFullAXTree")["nodes"]
    return [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") in roles and "name" in node]


def pixels(browser: Browser, card: int = 0) -> Image.Image:
    """What a card's canvas shows."""
    script = "return document.querySelectorAll('.card figure canvas')[arguments[0]].toDataURL()"
    return Image.open(io.BytesIO(base64.b64decode(browser.run(script, card).partition(",")[2]))).convert("RGB")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("how", ["drop", "paste", "choose"])
def test_a_picture_gets_its_label_and_its_map(
    chromium: Browser, service: Service, width: int, how: Literal["drop", "paste", "choose"]
) -> None:
    opened(chromium, service, width)
    chromium.give(DOG, "dog.jpg", how)
    assert sorted(answered(chromium, "dog")) == sorted(FAMILY)
    verdict = chromium.text("#verdict")
    assert "dog" in verdict
    script = "return [...document.querySelectorAll('.card[data-model]')].map((c) => c.querySelector('.says').innerText)"
    for model, says in zip(answered(chromium), chromium.run(script), strict=True):
        best = FRESH.post(f"{service.url}/v1/models/{model}/classify", content=DOG).json()["results"][0]["predictions"][
            0
        ]
        assert says.startswith(best["label"])
        assert re.search(rf"\b{100 * best['score']:.0f} %", says)
    with_map = pixels(chromium)
    chromium.run("const s = document.getElementById('strength'); s.value = 0; s.dispatchEvent(new Event('input'))")
    assert pixels(chromium).tobytes() != with_map.tobytes(), "the slider takes the map away"
    assert chromium.run("return document.documentElement.scrollWidth <= innerWidth"), "nothing lies beside the page"
    assert chromium.complaints() == []


def test_the_map_is_drawn_where_the_service_says(chromium: Browser, service: Service) -> None:
    """Warm where the largest value is, and nothing on what the crop left out but the dimming."""
    with Image.open(io.BytesIO(DOG)) as dog:
        wide = Image.new("RGB", (240, 120), "gray")
        wide.paste(dog.resize((120, 120)), (60, 0))
    out = io.BytesIO()
    wide.save(out, "JPEG", quality=95)
    opened(chromium, service)
    chromium.give(out.getvalue(), "wide.jpg")
    answered(chromium, "dog")
    assert "framed" in chromium.text("#notes")
    place = answered(chromium).index(MODEL)
    found = FRESH.post(
        f"{service.url}/v1/models/{MODEL}/explain?class=dog",
        content=out.getvalue(),
        headers={"accept": "application/json"},
    ).json()["map"]
    values = [value for row in found for value in row]
    y, x = divmod(values.index(max(values)), len(found[0]))
    shown = pixels(chromium, place)
    slider = (
        "const s = document.getElementById('strength'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
    )
    chromium.run(slider, 0)
    bare = pixels(chromium, place)
    size = shown.height / len(found)
    at = (round(shown.width / 4 + (x + 0.5) * size), round((y + 0.5) * size))
    warmth = [red - blue for red, _, blue in (image.getpixel(at) for image in (bare, shown))]  # type: ignore[misc]
    assert warmth[1] > warmth[0] + 60
    margin = (0, 0, shown.width // 4 - 4, shown.height)
    assert shown.crop(margin).tobytes() == bare.crop(margin).tobytes()


def test_another_label_shows_its_map_everywhere(chromium: Browser, service: Service) -> None:
    opened(chromium, service)
    chromium.give(DOG, "dog.jpg")
    answered(chromium, "dog")
    before = pixels(chromium)
    label = chromium.run("const b = document.querySelectorAll('.bars button')[1]; b.click(); return b.innerText")
    label = label.split()[0]
    assert label != "dog"
    answered(chromium, label)
    assert pixels(chromium).tobytes() != before.tobytes()
    assert chromium.run("return document.querySelector('#wanted').selectedOptions[0].text") == label
    pressed = "return [...document.querySelectorAll('.bars [aria-pressed=true] .label')].map((one) => one.innerText)"
    assert set(chromium.run(pressed)) == {label}


def test_gates_are_shown_where_the_model_exposes_them(chromium: Browser, service: Service) -> None:
    opened(chromium, service)
    chromium.give(DOG, "dog.jpg")
    answered(chromium)
    script = """
      const cards = [...document.querySelectorAll(".card")];
      const shown = (card) => card.querySelector(".gates").checkVisibility();
      const count = (card) => shown(card) && card.querySelectorAll(".strips li").length;
      return Object.fromEntries(cards.map((card) => [card.dataset.model, count(card)]));
    """
    counts = chromium.run(script)
    assert counts == {model: 0 if model.endswith("-none") else 6 for model in FAMILY}


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
    chromium.give(b"", "", "drop")
    chromium.until(lambda: chromium.text("#notice-title") == "That is no file")


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


def test_what_was_done_to_the_picture_is_told(chromium: Browser, service: Service) -> None:
    turned, exif, out = Image.open(io.BytesIO(DOG)).rotate(90), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    turned.save(out, "JPEG", exif=exif)
    opened(chromium, service)
    chromium.give(out.getvalue(), "turned.jpg")
    answered(chromium, "dog")
    assert "EXIF" in chromium.text("#notes")


def test_a_format_that_the_browser_cannot_show(chromium: Browser, service: Service) -> None:
    out = io.BytesIO()
    Image.open(io.BytesIO(DOG)).save(out, "TIFF")
    opened(chromium, service)
    chromium.give(out.getvalue(), "dog.tiff")
    answered(chromium)
    assert len(pixels(chromium).resize((8, 8)).getcolors() or []) > 8, "the service draws it"


def test_what_a_picture_is_its_bytes_say(chromium: Browser, service: Service) -> None:
    """By its name a browser calls it application/json, and the service would read it so."""
    opened(chromium, service)
    chromium.give(DOG, "dog.json", "choose")
    answered(chromium, "dog")
    chromium.give(b'{"a": 1}', "a.json", "choose")
    chromium.until(lambda: chromium.text("#notice-title") == "The image's format is not supported")


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


@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_picture_lies_as_its_map_does(chromium: Browser, service: Service, orientation: int) -> None:
    """Also where the browser does not turn it: Chromium no WebP."""
    scene = Image.new("RGB", (120, 120), "gray")
    scene.paste("red", (0, 0, 60, 60))
    scene.paste("blue", (60, 60, 120, 120))
    scene.paste("green", (60, 0, 120, 60))
    turned = turned_by_exif(scene, orientation, "WEBP")
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(turned))).convert("RGB")
    opened(chromium, service)
    chromium.run("document.getElementById('strength').value = 0")
    chromium.give(turned, "turned.webp", "choose")
    answered(chromium)
    shown = ImageChops.difference(pixels(chromium).resize(upright.size), upright)
    assert ImageStat.Stat(shown).mean < [9, 9, 9], "as it is where it is not turned but for its edges' blur"


def test_a_picture_is_shown_with_its_own_answer(chromium: Browser, service: Service) -> None:
    """One that is drawn late does not take the place of the next; one that is a line is seen."""
    opened(chromium, service)
    late = """
      const made = createImageBitmap;
      window.createImageBitmap = async (file) => {
        if (file.name === "late.jpg") await new Promise((resolve) => (window.go = resolve));
        return made(file).finally(() => (window.last = file.name));
      };
      document.getElementById('strength').value = 0;
    """
    chromium.run(late)
    chromium.give(DOG, "late.jpg")
    answer = "return performance.getEntriesByName(new URL('v1/compare?top_k=5', location).href).length"
    chromium.until(lambda: chromium.run(answer))
    out = io.BytesIO()
    Image.new("RGB", (3000, 1), "red").save(out, "PNG")
    chromium.give(out.getvalue(), "line.png", "choose")
    answered(chromium)
    assert pixels(chromium).size == (900, 1)
    chromium.run("window.go()")
    chromium.until(lambda: chromium.run("return window.last") == "late.jpg")
    chromium.run("document.getElementById('strength').dispatchEvent(new Event('input'))")
    assert pixels(chromium).size == (900, 1)


def test_it_is_printed_in_ink_on_paper(chromium: Browser, service: Service) -> None:
    """Browsers print no backgrounds unless told to: dark words, and the bars, for a reader of dark pages too."""
    chromium.open(service.url + "/", scheme="dark")
    chromium.give(DOG, "dog.jpg")
    answered(chromium)
    pdf = base64.b64decode(chromium.command("Page.printToPDF", printBackground=False)["data"])
    parts = [part for part in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.S) if part.startswith(b"x")]
    used = set(re.findall(rb"([\d.]+) ([\d.]+) ([\d.]+) rg", b"".join(map(zlib.decompress, parts))))
    colours = {tuple(round(255 * float(part)) for part in colour) for colour in used}
    assert (0x1C, 0x20, 0x24) in colours, "words in ink"
    assert (0xE9, 0xE7, 0xE2) not in colours, "none in what is read on a dark screen"
    assert {(0x8F, 0xB8, 0xB6), (0x5F, 0x7F, 0xAE)} <= colours, "bars of scores and of times"


def test_of_several_pictures_the_first_is_answered_and_that_is_told(chromium: Browser, service: Service) -> None:
    opened(chromium, service)
    drop = """
      const carried = new DataTransfer();
      for (const [name, encoded] of Object.entries(arguments[0])) {
        carried.items.add(new File([Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0))], name));
      }
      document.querySelector("main").dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true }));
    """
    chromium.run(drop, {name: base64.b64encode(content).decode() for name, content in (("1", DOG), ("2", SHIP))})
    answered(chromium, "dog")
    assert chromium.text("#give-title") == "Another picture? This is 1, the first of 2; it takes one at a time."


def test_the_keyboard_suffices(chromium: Browser, service: Service) -> None:
    """From the top of the page: the button, then the label list, then a bar."""
    opened(chromium, service)
    focus = "const e = document.activeElement; return e.id || e.className || e.innerText"
    chromium.press(Keys.TAB, Keys.TAB, Keys.TAB)
    assert chromium.run(focus) == "choose"
    assert chromium.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is seen"
    chromium.give(DOG, "dog.jpg", "paste")
    answered(chromium, "dog")
    chromium.press(Keys.TAB)
    assert chromium.run(focus) == "wanted"
    chromium.press("s")
    answered(chromium, "ship")
    chromium.press(Keys.TAB)
    assert chromium.run(focus) == "strength"
    before = pixels(chromium)
    chromium.press(Keys.HOME)
    assert pixels(chromium).tobytes() != before.tobytes()
    chromium.press(Keys.TAB, Keys.ENTER)
    answered(chromium, chromium.run("return document.activeElement.querySelector('.label').innerText"))


def test_a_screen_reader_is_told(chromium: Browser, service: Service) -> None:
    opened(chromium, service)
    chromium.give(DOG, "dog.jpg")
    answered(chromium)
    assert [name for name in named(chromium, "button", "image", "slider", "link") if not name] == []
    assert any("dog" in name for name in named(chromium, "heading"))
    assert any(re.match(r"dog .*%", name) for name in named(chromium, "button"))
    assert any("map. What speaks for" in name for name in named(chromium, "image"))
    assert named(chromium, "combobox") == ["Show what speaks for"]
    script = "const e = document.getElementById(arguments[0]); return e.getAttribute('role') ?? e.ariaLive"
    assert [chromium.run(script, name) for name in ("service", "verdict")] == ["status", "polite"]


def test_a_new_version_of_a_model_is_shown_as_it_is(chromium: Browser, repository: Path, tmp_path: Path) -> None:
    """What the page knew of the old one counts no more; whatever its labels are, they are words and fit."""
    own = shutil.copytree(repository, tmp_path / "repository")
    running = start(own, tmp_path)

    def other_labels(contract: dict[str, Any], staged: Path) -> None:
        contract["labels"] = [f"<b>{label}</b>{100 * '_'}" for label in contract["labels"]]
        contract["parameters"] = 12_340_000

    try:
        running.await_ready()
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
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)


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
    running = start(repository, tmp_path, max_inflight_images=8)
    try:
        running.await_ready()
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
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)
    chromium.give(DOG, "dog.jpg")
    chromium.until(lambda: chromium.text("#notice-title") == "The service cannot be reached")


def test_a_key_is_asked_for_kept_in_the_tab_and_forgotten(chromium: Browser, repository: Path, tmp_path: Path) -> None:
    secret, line = make("people")
    (tmp_path / "keys").write_text(line + "\n")
    running = start(repository, tmp_path, api_keys_file=tmp_path / "keys")
    try:
        running.await_ready()
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
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(30)


def test_docs_say_what_they_lack_where_nothing_else_is_reached(chromium: Browser, service: Service) -> None:
    chromium.command("Network.enable")
    chromium.command("Network.setBlockedURLs", urls=["*cdn.jsdelivr.net*"])
    try:
        chromium.open(service.url + "/docs")
        assert "/openapi.json has the same" in chromium.text("body")
    finally:
        chromium.command("Network.setBlockedURLs", urls=[])


def test_nothing_leaves_the_host_and_the_policy_is_strict(chromium: Browser, service: Service) -> None:
    chromium.requests()
    opened(chromium, service)
    chromium.until(lambda: chromium.text("#known"))
    chromium.give(DOG, "dog.jpg")
    answered(chromium)
    asked = [url for url in chromium.requests() if not url.startswith(("data:", "blob:"))]
    assert len(asked) > 5
    assert asked.count(service.url + "/v1/models") == 1, "of thousands of classes it is megabytes"
    assert [url for url in asked if not url.startswith(service.url + "/")] == []
    policy = FRESH.get(service.url + "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    blocked: Any = chromium.run(
        "const seen = []; document.addEventListener('securitypolicyviolation', (e) => seen.push(e.violatedDirective));"
        "const s = document.createElement('script'); s.textContent = 'window.inline = 1'; document.head.append(s);"
        "return [seen, window.inline ?? null]"
    )
    assert blocked[1] is None, "an inline script does not run"
    assert json.dumps(chromium.complaints()).count("Content Security Policy") == 1, "and nothing else was blocked"
