"""What the tests of the page do with it, and see of it."""

from __future__ import annotations

import base64
import io

from PIL import Image

from tests.integration.chromium import Browser
from tests.integration.conftest import ROOT, Service

DOG = (ROOT / "build" / "demo" / "images" / "dog-2.jpg").read_bytes()
SHIP = (ROOT / "build" / "demo" / "images" / "ship-1.jpg").read_bytes()


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
