"""Writes a report: one HTML file that needs nothing else, plots as PNG, tables as CSV, everything as JSON."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eca_build import cost
from eca_build.networks import create, with_formula
from pydantic import TypeAdapter, ValidationError
from torch import device

from tests.load import plots
from tests.load.compare import Change
from tests.load.environment import busy
from tests.load.intervals import Estimate
from tests.load.matrix import BUSY
from tests.load.measure import Cell
from tests.load.paper import TABLE_3, flops_unit
from tests.load.summary import STAGES, Row, Tax, at_objective, curve, failed, objective_ms, ordered, row, taxes

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
class Table:
    """A table by its file's name: what stands above it, the columns, the rows as people read them."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


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
    figures = {
        "latency-against-load": plots.latency_against_load(rows) if any(r.offered_per_s for r in rows) else None,
        "throughput-at-objective": plots.throughput(rows) if any(r.offered_per_s for r in rows) else None,
        "tail": plots.tail(rows) if any(r.offered_per_s for r in rows) else None,
        "tax": plots.tax(found) if found else None,
        "stages": plots.stages(rows) if any(r.stages_ms for r in rows) else None,
        "accuracy": plots.accuracy(rows),
    }
    images = {name: plots.png(figure) for name, figure in figures.items() if figure is not None}
    for name, content in images.items():
        (folder / f"{name}.png").write_bytes(content)
    tables = [tax_table(found), objective_table(rows), level_table(rows), paper_table()]
    if changed:
        tables.insert(0, change_table(changed))
    for table in tables:
        (folder / f"{table.name}.csv").write_text(as_csv(table, run.environment))
    page = folder / "report.html"
    page.write_text(as_html(run, rows, found, images, tables, caution))
    return page


def change_table(changed: Sequence[Change]) -> Table:
    """A comparison's changes, the worst first."""
    order = {"worse": 0, "better": 1, "unknown": 2, "same": 3}
    rows = [
        (c.variant, c.level, c.figure, "" if math.isnan(c.change.value) else c.change.text(2), c.verdict)
        for c in sorted(changed, key=lambda c: (order[c.verdict], c.variant, c.level))
    ]
    return Table("changes", "New by old, with 95 % interval", ("model", "load", "figure", "change", "verdict"), rows)


def tax_table(found: Sequence[Tax]) -> Table:
    """Costs beside the paper's."""
    rows = [
        (
            t.variant, t.level, t.throughput.text(1, 100), t.latency_p50.text(1, 100), t.processor.text(1, 100),
            "" if t.published is None else f"{100 * t.published:.1f}",
        )
        for t in found
    ]  # fmt: skip
    columns = (
        "model",
        "load",
        "throughput lost (%)",
        "p50 added (%)",
        "processor time added (%)",
        "the paper's loss (%)",
    )
    return Table("tax", "The tax of attention against the plain network, with 95 % interval", columns, rows)


def objective_table(rows: Sequence[Row]) -> Table:
    """Throughput at the objective."""
    out = []
    for variant, backbone in dict.fromkeys((one.variant, one.backbone) for one in rows):
        if curve(rows, variant):
            objective = objective_ms(rows, backbone)
            value, beyond = at_objective(rows, variant, objective)
            out.append((variant, f"{objective:g}", f"{'>= ' if beyond else ''}{value:.1f}"))
    return Table(
        "objective", "Arrivals a second with p99 within the objective", ("model", "objective (ms)", "images/s"), out
    )


def level_table(rows: Sequence[Row]) -> Table:
    """Every row."""
    out = [
        (
            r.variant, r.level, "" if r.offered_per_s is None else f"{r.offered_per_s:.0f}", f"{r.answers}",
            f"{r.failures}", _short(r.per_s), _short(r.p50_ms), _short(r.p95_ms), _short(r.p99_ms),
            _short(r.processor_ms), f"{r.late_p99_ms:.2f}",
            *(f"{r.stages_ms.get(stage, math.nan):.1f}" for stage in STAGES),
        )
        for r in rows
    ]  # fmt: skip
    columns = (
        "model", "load", "offered/s", "answers", "failed", "images/s", "p50 (ms)", "p95 (ms)", "p99 (ms)",
        "processor (ms/answer)", "generator late p99 (ms)", *(f"{stage} (ms)" for stage in STAGES),
    )  # fmt: skip
    return Table("levels", "Everything measured; stages are means of a request", columns, out)


def paper_table() -> Table:
    """Parameters and operations of the paper's table 3 beside ours."""
    out = []
    for published in TABLE_3:
        with device("meta"):
            network = create(with_formula(published.arch, published.attention, 1000))
        unit, digits = flops_unit(published.arch), 1 if published.arch.startswith("mobile") else 2
        suffix = "M" if published.arch.startswith("mobile") else "G"
        out.append(
            (
                f"{published.arch} {plots.label(published.attention)}",
                f"{published.parameters:.2f}",
                f"{cost.parameters(network) / 2**20:.2f}",
                f"{published.flops:.{digits}f} {suffix}",
                f"{cost.paper_flops(network, 224) / unit:.{digits + 1}f} {suffix}",
                "" if published.fps is None else str(published.fps),
                "" if published.top1 is None else f"{published.top1:.2f}",
            )
        )
    columns = ("network", "parameters (Mi)", "ours", "FLOPs", "ours", "FPS, the paper", "top-1 (%), the paper")
    return Table("paper", "ECA-Net's table 3 beside what is built here", columns, out)


def as_csv(table: Table, environment: dict[str, str]) -> str:
    """CSV, with the environment in comment lines above it."""
    out = io.StringIO()
    for key, value in environment.items():
        out.write(f"# {key}: {value}\n")
    writer = csv.writer(out)
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return out.getvalue()


def as_html(
    run: Run, rows: Sequence[Row], found: Sequence[Tax], images: dict[str, bytes], tables: Sequence[Table], caution: str
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
    parts += [_html_table(table) for table in tables]
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
    for one in found:
        if one.level != BUSY.name or one.variant != f"{one.backbone}-{one.attention}":
            continue
        paper = "" if one.published is None else f"; the paper's GPU lost {100 * one.published:.1f} %"
        lines.append(
            f"{plots.label(one.attention)} costs {one.backbone} {one.throughput.text(1, 100)} % of its "
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


def _short(one: Estimate) -> str:
    digits = 0 if one.value >= 100 else 1
    return one.text(digits)
