"""Draws confusion matrices, several models side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence, Set
from math import ceil

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from eca_service.evaluation import Evaluation

SIDE_PX = 560  # of a matrix with few classes; of many each takes a pixel
MOST_NAMED = 40
FULL, EMPTY, INK, SOFT = (23, 107, 107), (247, 246, 242), (28, 32, 36), (91, 99, 107)
TITLE_PX, MARGIN_PX = 76, 28


def confusion_png(evaluations: Sequence[Evaluation]) -> bytes:
    """A PNG with a matrix for each model: true classes downward, answers across, dark is the share of the row.

    Of the classes only those that an image is of or was taken for, by any of the models. Counts are written where they
    fit, labels where there are at most 40.
    """
    occurring = {evaluation.labels[index] for evaluation in evaluations for index in evaluation.occurring}
    panels = [_panel(evaluation, occurring) for evaluation in evaluations]
    width = sum(panel.width for panel in panels) + MARGIN_PX * (len(panels) + 1)
    picture = Image.new("RGB", (width, max(panel.height for panel in panels) + 2 * MARGIN_PX), "white")
    left = MARGIN_PX
    for panel in panels:
        picture.paste(panel, (left, MARGIN_PX))
        left += panel.width + MARGIN_PX
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def _panel(evaluation: Evaluation, occurring: Set[str]) -> Image.Image:
    shown = [index for index, label in enumerate(evaluation.labels) if label in occurring]
    classes, counts = len(shown), evaluation.confusion(shown)
    cell = max(1, SIDE_PX // max(1, classes))
    font = ImageFont.load_default(min(15, max(9, cell - 4)))
    names = [evaluation.labels[index].partition(",")[0] for index in shown] if classes <= MOST_NAMED else []
    gutter = max((round(font.getlength(name)) for name in names), default=0) + 10
    size = cell * classes
    told = f"top-1 {evaluation.top1:.2%}, top-5 {evaluation.top5:.2%} of {evaluation.images} images; across: answered"
    if classes < len(evaluation.labels):
        told += f"; {classes} of {len(evaluation.labels)} classes occur"
    title = (0, evaluation.model, INK, ImageFont.load_default(24)), (36, told, SOFT, ImageFont.load_default(15))
    width = max(gutter + size, *(ceil(font.getlength(text)) for _, text, _, font in title))
    panel = Image.new("RGB", (width, TITLE_PX + size + gutter), "white")
    pen = ImageDraw.Draw(panel)
    for top, text, colour, its_font in title:
        pen.text((0, top), text, colour, its_font)
    shares = np.divide(counts, np.maximum(1, counts.sum(1, keepdims=True)), dtype=np.float32)  # of thousands: gigabytes
    if classes:
        shades = Image.fromarray((shares**0.6 * 255).round().astype(np.uint8))
        matrix = ImageOps.colorize(shades, EMPTY, FULL).resize((size, size), Image.Resampling.NEAREST)
        panel.paste(matrix, (gutter, TITLE_PX))
    if cell >= 24:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                at = (gutter + (column + 0.5) * cell, TITLE_PX + (row + 0.5) * cell)
                pen.text(at, str(count), "white" if shares[row, column] > 0.35 else INK, font, "mm")
    for place, name in enumerate(names):
        pen.text((gutter - 6, TITLE_PX + (place + 0.5) * cell), name, INK, font, "rm")
        _upward(panel, name, font, (gutter + (place + 0.5) * cell, TITLE_PX + size + 6))
    return panel


def _upward(
    panel: Image.Image, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, at: tuple[float, float]
) -> None:
    """Writes `text` from below, ending at `at`."""
    length = round(font.getlength(text)) + 2
    strip = Image.new("L", (length, 20), 0)
    ImageDraw.Draw(strip).text((length, 10), text, 255, font, "rm")
    turned = strip.rotate(90, expand=True)
    panel.paste(INK, (round(at[0]) - 10, round(at[1])), turned)
