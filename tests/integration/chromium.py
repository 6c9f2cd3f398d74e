"""A real Chromium, driven by Debian's own driver: what it shows, what it asks for, what it complains about."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service as Driver

Scheme = Literal["light", "dark"]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    "--force-color-profile=srgb",
)
DROP = """
const [encoded, name, type] = arguments;
const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
const carried = new DataTransfer();
if (name) carried.items.add(new File([bytes], name, { type }));
const target = document.querySelector("main");
for (const kind of ["dragenter", "dragover", arguments[3]]) {
  target.dispatchEvent(kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: carried, bubbles: true })
    : new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));
}
"""


def missing() -> str | None:
    """Why no browser can be driven here; None where one can."""
    lacks = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(lacks)} not installed; Debian: apt-get install chromium chromium-driver" if lacks else None


class Browser:
    """One page in one browser of its own."""

    def __init__(self, driver: webdriver.Chrome, folder: Path) -> None:
        self.driver = driver
        self.folder = folder  # where the files lie that are chosen

    def open(self, url: str, width: int = 1280, scheme: Scheme = "light") -> None:
        """Shows `url`, as wide as asked for, to a reader of light or dark pages; below 500 pixels on a touch screen."""
        phone = width < 500
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844 if phone else 860,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.command("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.driver.get(url)

    def command(self, name: str, **parameters: Any) -> Any:
        """One command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of `script` in the page."""
        return self.driver.execute_script(script, *arguments)

    def give(self, content: bytes, name: str, how: Literal["drop", "paste", "choose"] = "drop") -> None:
        """Hands the page a file as a person would; a drop without a name carries no file."""
        if how == "choose":
            path = self.folder / name
            path.write_bytes(content)
            self.driver.find_element("id", "file").send_keys(str(path))
            return
        kind = "image/jpeg" if name.endswith(".jpg") else "text/plain"
        self.run(DROP, base64.b64encode(content).decode(), name, kind, how)

    def text(self, selector: str) -> str:
        """The text of the first element that matches; empty where it is not shown."""
        return str(
            self.run(
                "const e = document.querySelector(arguments[0]);"
                "return e && e.checkVisibility() ? e.innerText.trim() : ''",
                selector,
            )
        )

    def until(self, holds: Callable[[], Any], timeout_s: float = 20) -> Any:
        """The first true value of `holds`. Raises AssertionError with the page's text where there is none in time."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if found := holds():
                return found
            time.sleep(0.05)
        raise AssertionError(f"waited {timeout_s} s in vain on:\n{self.text('body')}")

    def press(self, *keys: str) -> None:
        """Presses keys, one after the other, wherever the focus is."""
        for key in keys:
            webdriver.ActionChains(self.driver).send_keys(key).perform()

    def picture(self) -> bytes:
        """The whole page as a PNG."""
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def complaints(self) -> list[str]:
        """What the browser said of the page since the last time: violations of its policy, errors, failed loads."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """The addresses that the page asked for since the last time."""
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def _log(self, kind: str) -> list[dict[str, str]]:
        entries: list[dict[str, str]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return entries


@contextmanager
def browser(flags: Sequence[str] = ()) -> Iterator[Browser]:
    """A browser with a profile of its own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="eca-chromium-", ignore_cleanup_errors=True) as folder:
        profile, chosen = Path(folder, "profile"), Path(folder, "chosen")
        chosen.mkdir()
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or "chromium"
        for flag in (*FLAGS, f"--user-data-dir={profile}", *flags):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options, Driver(shutil.which("chromedriver")))
        try:
            yield Browser(driver, chosen)
        finally:
            try:
                driver.quit()
            except WebDriverException:
                driver.service.stop()
