"""What rules and dashboards ask for: their queries, and the names of the metrics in them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
GROUPED = re.compile(r"\b(?:by|without) \(([^)]*)\)")
MATCHER = re.compile(r"(\w+)(?:=~|!~|!=|=)\"")
LEGEND = re.compile(r"{{(\w+)}}")
PROMETHEUS_ADDS = {"instance", "job", "namespace"}  # and `le` is in the buckets themselves
METRIC = re.compile(r"(?<![\w:])(?:eca[_:]|nv_)[\w:]+")


def rules(kind: str) -> dict[str, str]:
    """Name to expression of all `record` or `alert` rules. The files' layout is ours and needs no YAML parser."""
    text = "".join(path.read_text() for path in sorted((PROMETHEUS / "rules").glob("*.yml")))
    found = re.findall(rf"- {kind}: (\S+)\n +expr: >-\n((?: {{10}}.*\n)+)", text)
    return {name: " ".join(lines.split()) for name, lines in found}


def dashboards() -> dict[str, dict[str, Any]]:
    """File name to its content."""
    return {path.name: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panel_queries() -> dict[str, str]:
    """Every query of every panel, Grafana's variables replaced, and its legend; equal queries once."""
    panels = [panel for dashboard in dashboards().values() for panel in dashboard["panels"]]
    targets = [target for panel in panels for target in panel["targets"]]
    return {
        target["expr"].replace("$__rate_interval", "5m").replace("$model", ".+"): target["legendFormat"]
        for target in targets
    }


def metrics_asked_for() -> set[str]:
    """Names of the metrics in all rules and panels, without those that recording rules make."""
    queries = [*rules("record").values(), *rules("alert").values(), *panel_queries()]
    return {name for query in queries for name in METRIC.findall(query)} - rules("record").keys()


def labels_asked_for() -> dict[str, set[str]]:
    """By metric, the labels that rules and panels match it by, group it by, or show of it."""
    queries = {query: "" for kind in ("record", "alert") for query in rules(kind).values()} | panel_queries()
    found: dict[str, set[str]] = {}
    for query, legend in queries.items():
        shown = {label.strip() for group in GROUPED.findall(query) for label in group.split(",")}
        shown |= set(LEGEND.findall(legend))
        for metric, matchers in re.findall(rf"({METRIC.pattern})(?:{{([^}}]*)}})?", query):
            asked = shown | set(MATCHER.findall(matchers))
            found.setdefault(metric, set()).update(asked - PROMETHEUS_ADDS)
    return {metric: labels for metric, labels in found.items() if metric not in rules("record")}


def promtool(*arguments: object) -> None:
    """Runs promtool; fails with what it says."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed; it is in the package `prometheus`")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
