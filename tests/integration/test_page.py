"""The page, used as people use it, in a real Chromium against the whole service."""

from __future__ import annotations

import base64
import io
import json
import re
import zlib
from typing import Any, Literal

import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat
from selenium.webdriver.common.keys import Keys

from tests.integration.chromium import Browser
from tests.integration.conftest import DEMO, FRESH, MODEL, Service
from tests.integration.page import DOG, SHIP, answered, named, opened, pixels
from tests.unit.image_files import turned_by_exif

FAMILY = [weights.stem for weights in DEMO if weights.stem.startswith(MODEL.partition("-")[0])]


@pytest.fixture(scope="module")
def service(undisturbed: Service) -> Service:
    """Nothing here disturbs it."""
    return undisturbed


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


@pytest.mark.parametrize(
    ("orientation", "name"), [*((orientation, "turned.webp") for orientation in range(2, 9)), (6, "turned.jpg")]
)
def test_the_picture_lies_as_its_map_does(chromium: Browser, service: Service, orientation: int, name: str) -> None:
    """Also where the browser does not turn it: Chromium no WebP, whatever it is called."""
    scene = Image.new("RGB", (120, 120), "gray")
    scene.paste("red", (0, 0, 60, 60))
    scene.paste("blue", (60, 60, 120, 120))
    scene.paste("green", (60, 0, 120, 60))
    turned = turned_by_exif(scene, orientation, "WEBP")
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(turned))).convert("RGB")
    opened(chromium, service)
    chromium.run("document.getElementById('strength').value = 0")
    chromium.give(turned, name, "choose")
    answered(chromium)
    shown = ImageChops.difference(pixels(chromium).resize(upright.size), upright)
    assert ImageStat.Stat(shown).mean < [9, 9, 9], "as it is where it is not turned but for its edges' blur"


def test_what_is_see_through_is_shown_on_white_as_it_was_seen(chromium: Browser, service: Service) -> None:
    """Ink on nothing would be lost on a dark page."""
    out = io.BytesIO()
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(out, "PNG")
    opened(chromium, service)
    chromium.run("document.getElementById('strength').value = 0")
    chromium.give(out.getvalue(), "ink.png", "choose")
    answered(chromium)
    assert "laid on white" in chromium.text("#notes")
    assert [colour for _, colour in pixels(chromium).getcolors() or []] == [(255, 255, 255)]


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
