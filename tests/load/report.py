"""Writes a report: one HTML file that needs nothing else, plots as PNG, tables as CSV, everything as JSON."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tests.load import drawing, plots, tables
from tests.load.compare import Change
from tests.load.environment import busy
from tests.load.matrix import BUSY
from tests.load.measure import Cell
from tests.load.summary import Row, Tax, failed, main_ones, ordered, row, taxes, title
from tests.load.tables import Table

FORMAT = 1  # of bench.json
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #111; max-width: 1080px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em } p { max-width: 75ch }
img { max-width: 100%; border: 1px solid #ddd }
table { border-collapse: collapse; font-size: 13px; margin: .5em 0 } caption { text-align: left; font-weight: 600 }
th, td { padding: .2em .8em .2em 0; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap }
th:first-child, td:first-child { text-align: left } .scroll { overflow-x: auto }
.bad { background: #111; color: #fff; padding: .4em .8em } .good { border: 1px solid #111; padding: .4em .8em }
dt { float: left; clear: left; width: 11em; color: #555 } dd { margin-left: 11em }
"""


@dataclass(frozen=True)
class Run:
    """One run, as it is written to bench.json and read from it."""

    environment: dict[str, str]
    cells: list[Cell]
    notes: dict[str, str]  # what could not be built, and why


def save(run: Run, path: Path) -> None:
    """Writes bench.json."""
    content = {
        "format": FORMAT,
        "environment": run.environment,
        "notes": run.notes,
        "cells": [c.asdict() for c in run.cells],
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.replace(path)  # a full disk leaves what was measured before


def load(path: Path) -> Run:
    """Reads bench.json. ValueError, a sentence, where it is none of ours."""
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"{path} has format {content['format']}, this is {FORMAT}; measure it again")
        return TypeAdapter(Run).validate_python({name: content[name] for name in ("environment", "cells", "notes")})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{path} is no bench.json of ours ({where}: {first['msg']}); `make bench` writes one"
        ) from None
    except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no bench.json of ours ({error!r}); `make bench` writes one") from None


def write(run: Run, folder: Path, changed: Sequence[Change] = (), caution: str = "") -> Path:
    """All files of a report; the HTML's path. `changed` and `caution` are of a comparison with an older run."""
    folder.mkdir(parents=True, exist_ok=True)
    save(run, folder / "bench.json")
    rows, found = [row(cell) for cell in ordered(run.cells)], taxes(ordered(run.cells))
    loaded = any(one.offered_per_s and one.answers for one in rows)
    figures = {
        "latency-against-load": plots.latency_against_load(rows) if loaded else None,
        "throughput-at-objective": plots.throughput(rows) if loaded else None,
        "tail": plots.tail(rows) if loaded else None,
        "tax": plots.tax(found) if found else None,
        "stages": plots.stages(rows) if any(r.stages_ms for r in rows) else None,
        "accuracy": plots.accuracy(rows),
    }
    images = {name: drawing.png(figure, run.environment) for name, figure in figures.items() if figure is not None}
    for name, content in images.items():
        (folder / f"{name}.png").write_bytes(content)
    shown = [tables.tax(found), tables.objective(rows), tables.levels(rows), tables.table_3(), tables.table_2()]
    if changed:
        shown.insert(0, tables.changes(changed))
    for table in shown:
        (folder / f"{table.name}.csv").write_text(tables.as_csv(table, run.environment))
    page = folder / "report.html"
    page.write_text(as_html(run, rows, found, images, shown, caution))
    return page


def as_html(
    run: Run, rows: Sequence[Row], found: Sequence[Tax], images: dict[str, bytes], shown: Sequence[Table], caution: str
) -> str:
    """The page."""
    failures, sent = failed(run.cells), sum(cell.sent for cell in run.cells)
    parts = [f"<h1>ECA Serve: load test</h1><p>{html.escape(run.environment.get('when', ''))}</p>"]
    if failures:
        codes = html.escape(", ".join(sorted(failures)))
        parts.append(
            f'<p class="bad">{failures.total()} of {sent} requests failed ({codes}): the figures are of the others, '
            "and this run proves nothing.</p>"
        )
    elif not sent:
        parts.append('<p class="bad">Nothing was measured.</p>')
    else:
        parts.append(f'<p class="good">None of {sent} requests failed.</p>')
    if "cores" in run.environment and (reason := busy(run.environment)):
        parts.append(f'<p class="bad">{html.escape(reason)}</p>')
    if caution:
        parts.append(f'<p class="bad">The older run was made otherwise: {html.escape(caution)}</p>')
    parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in headlines(found)) + "</ul>")
    parts.append(
        "<p>Networks at 224 pixels have random weights, which latency does not depend on; demo networks have trained "
        "ones where they are there. All of one backbone took turns in random blocks, so that what else the machine did "
        "hurt them alike. In open load latency counts from the planned start. Intervals are 95 %, by bootstrap over "
        "the rounds.</p>"
    )
    for name, content in images.items():
        data = base64.b64encode(content).decode()
        parts.append(f'<p><img alt="{name.replace("-", " ")}" src="data:image/png;base64,{data}"></p>')
    parts.append("<h2>Tables</h2>")
    parts += [_html_table(table) for table in shown]
    if run.notes:
        lines = "".join(f"<li>{html.escape(name)}: {html.escape(why)}</li>" for name, why in run.notes.items())
        parts.append(f"<h2>Not measured</h2><ul>{lines}</ul>")
    facts = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in run.environment.items())
    parts.append(f"<h2>How it was measured</h2><dl>{facts}</dl>")
    title = '<!doctype html><html lang="en"><meta charset="utf-8"><title>ECA Serve: load test</title>'
    head = f"{title}<style>{STYLE}</style>"
    return head + "\n".join(parts) + "</html>\n"


def headlines(found: Sequence[Tax]) -> list[str]:
    """The taxes with eight callers, in sentences."""
    lines = []
    for one in main_ones(found):
        if one.level != BUSY.name:
            continue
        paper = "" if one.published is None else f"; the paper's GPU lost {100 * one.published:.1f} %"
        lines.append(
            f"{drawing.label(one.attention)} costs {one.backbone}{title([one])} {one.throughput.text(1, 100)} % of its "
            f"throughput{paper}."
        )
    return lines


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>" for cells in table.rows
    )
    caption = f"<caption>{html.escape(table.caption)}</caption>"
    return f'<div class="scroll"><table>{caption}<tr>{head}</tr>{body}</table></div>'
