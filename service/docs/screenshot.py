"""Makes page.png of a running service and a demo image: python -m service.docs.screenshot, in the repository's root."""

from __future__ import annotations

import io
from pathlib import Path

import click
from PIL import Image

from tests.integration.chromium import browser, missing

TARGET = Path(__file__).with_name("page.png")
READY = """
  const cards = [...document.querySelectorAll(".card[data-model]")];
  return cards.length > 0 && cards.every((card) => card.querySelector("figcaption").textContent);
"""


@click.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="The running service.")
@click.option(
    "--image",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=Path("build/demo/images/horse-1.jpg"),
    show_default=True,
    help="Image that is dropped on the page.",
)
@click.option("--colours", default=256, show_default=True, help="Fewer make a smaller file.")
def main(url: str, image: Path, colours: int) -> None:
    """Drops an image on the page and keeps what it shows."""
    if reason := missing():
        raise click.ClickException(reason)
    with browser() as page:
        page.open(url + "/", 1280)
        page.until(lambda: page.text("#service") == "ready")
        page.give(image.read_bytes(), image.name)
        page.until(lambda: page.run(READY))
        shown = Image.open(io.BytesIO(page.picture())).convert("RGB")
    shown.quantize(colours, dither=Image.Dither.NONE).save(TARGET, optimize=True)
    click.echo(f"{TARGET}: {shown.width} x {shown.height}, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
