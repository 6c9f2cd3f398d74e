"""What rules and dashboards ask for: their queries, and the names of the metrics in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
METRIC = re.compile(r"(?<![\w:])(?:eca[_:]|nv_)[\w:]+")


def rules(kind: str) -> dict[str, str]:
    """Name to expression of all `record` or `alert` rules. The files' layout is ours and needs no YAML parser."""
    text = "".join(path.read_text() for path in sorted((PROMETHEUS / "rules").glob("*.yml")))
    found = re.findall(rf"- {kind}: (\S+)\n +expr: >-\n((?: {{10}}.*\n)+)", text)
    return {name: " ".join(lines.split()) for name, lines in found}


def dashboards() -> dict[str, dict[str, Any]]:
    """File name to its content."""
    return {path.name: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panel_queries() -> list[str]:
    """Every query of every panel, Grafana's variables replaced."""
    panels = [panel for dashboard in dashboards().values() for panel in dashboard["panels"]]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    return [query.replace("$__rate_interval", "5m").replace("$model", ".+") for query in queries]


def metrics_asked_for() -> set[str]:
    """Names of the metrics in all rules and panels, without those that recording rules make."""
    queries = [*rules("record").values(), *rules("alert").values(), *panel_queries()]
    return {name for query in queries for name in METRIC.findall(query)} - rules("record").keys()
