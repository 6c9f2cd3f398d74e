"""Writes the Grafana dashboards: python deploy/grafana/generate.py. What is shown is the two tables below."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

FOLDER = Path(__file__).parent / "dashboards"
RATE = "[$__rate_interval]"
REQUESTS = 'eca_requests_total{model=~"$model"}'


@dataclass(frozen=True)
class Panel:
    """A graph of named queries: `queries` maps a legend to PromQL; `unit` is Grafana's name of one."""

    title: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 8
    about: str = ""


def quantiles(metric: str, matchers: str) -> dict[str, str]:
    """p50, p95 and p99 of a histogram, summed over all gateways."""
    inner = f"sum by (le) (rate({metric}_bucket{{{matchers}}}{RATE}))"
    return {f"p{q}": f"histogram_quantile(0.{q}, {inner})" for q in (50, 95, 99)}


def by_model(metric: str, matchers: str = "") -> str:
    """A counter's rate by model; `matchers` end with a comma."""
    return f'sum by (model) (rate({metric}{{{matchers}model=~"$model"}}{RATE}))'


def p95(stage: str) -> str:
    """The 95th percentile of one stage, by model."""
    rate = f'rate(eca_stage_seconds_bucket{{stage="{stage}",model=~"$model"}}{RATE})'
    return f"histogram_quantile(0.95, sum by (le, model) ({rate}))"


SERVICE = [
    Panel("Ready", "short", {"models": "sum(min by (model) (eca_model_ready))"}, "stat", 4),
    Panel("Requests a second", "reqps", {"": f'sum(rate(eca_requests_total{{model!="unmatched"}}{RATE}))'}, "stat", 4),
    Panel("Errors, 1 h", "percentunit", {"": "eca:errors:ratio_rate1h"}, "stat", 4, "of ours: HTTP 500 and above"),
    Panel("Slower than 0.5 s, 1 h", "percentunit", {"": "eca:slow:ratio_rate1h"}, "stat", 4),
    Panel("Month's budget, 3 d", "percentunit", {"": "eca:errors:ratio_rate3d * 3 / 30 / 0.001"}, "stat", 4),
    Panel("Gateways", "short", {"": "count(eca_build_info)"}, "stat", 4),
    Panel("Traffic", "reqps", {"{{protocol}}": f"sum by (protocol) (rate({REQUESTS}{RATE}))"}),
    # a code of ours is a word; numbers are of health checks and routes that there are not
    Panel("Answers that are not ok", "reqps", {
        "{{code}}": f'sum by (code) (rate(eca_requests_total{{code!~"ok|[0-9]+"}}{RATE}))'
    }),
    Panel("Refused", "reqps", {"{{reason}}": f"sum by (reason) (rate(eca_rejected_total{RATE}))"}),
    Panel("Time to answer", "s", quantiles("eca_request_seconds", 'model=~"$model"')),
    Panel("Decoding", "s", quantiles("eca_stage_seconds", 'stage="decode",model=~"$model"')),
    Panel("Waiting for the engine", "s", quantiles("eca_stage_seconds", 'stage="queue",model=~"$model"')),
    Panel("In the engine", "s", quantiles("eca_stage_seconds", 'stage="infer",model=~"$model"')),
    Panel("Naming the classes", "s", quantiles("eca_stage_seconds", 'stage="postprocess",model=~"$model"')),
    Panel("Images a second", "short", {"{{model}}": by_model("eca_images_total")}),
    Panel("Images in a batch", "short", {
        "{{model}} mean": by_model("eca_batch_size_sum") + " / " + by_model("eca_batch_size_count")
    }),
    Panel("Images that wait", "short", {"{{model}}": 'sum by (model) (eca_queue_depth{model=~"$model"})'}),
    Panel("Ready, versions", "short", {"{{model}} {{version}} {{instance}}": 'eca_model_ready{model=~"$model"}'}),
    Panel("Plain, SE, ECA: the engine, p95", "s", {"{{model}}": p95("infer")}),
    Panel("Plain, SE, ECA: waiting, p95", "s", {"{{model}}": p95("queue")}),
    Panel("Plain, SE, ECA: the engine's time for an image", "s", {
        "{{model}}": by_model("eca_stage_seconds_sum", 'stage="infer",')
        + " / " + by_model("eca_stage_seconds_count", 'stage="infer",')
        + " / (" + by_model("eca_batch_size_sum") + " / " + by_model("eca_batch_size_count") + ")"
    }, about="A batch's time divided by its images, on the mean: what attention costs, where batches are alike. "
        "Golden images, one in five seconds, are batches too: read it where there are many more of others."),
]  # fmt: skip
TRITON = [
    Panel("GPU busy", "percentunit", {"{{gpu_uuid}}": "nv_gpu_utilization"}),
    Panel("GPU memory", "percentunit", {"{{gpu_uuid}}": "nv_gpu_memory_used_bytes / nv_gpu_memory_total_bytes"}),
    Panel("GPU power", "watt", {
        "{{gpu_uuid}}": "nv_gpu_power_usage", "{{gpu_uuid}} limit": "nv_gpu_power_limit"
    }),
    Panel("Requests", "reqps", {"{{model}}": f"sum by (model) (rate(nv_inference_request_success{RATE}))"}),
    Panel("Failures", "reqps", {
        "{{model}} {{reason}}": f"sum by (model, reason) (rate(nv_inference_request_failure{RATE}))"
    }),
    Panel("Images in an execution", "short", {
        "{{model}}": f"sum by (model) (rate(nv_inference_count{RATE}))"
        f" / sum by (model) (rate(nv_inference_exec_count{RATE}))"
    }),
    Panel("Waiting in Triton, mean", "µs", {
        "{{model}}": f"sum by (model) (rate(nv_inference_queue_duration_us{RATE}))"
        f" / sum by (model) (rate(nv_inference_request_success{RATE}))"
    }, about="The gateways batch: what waits here waits for another gateway's batch."),
    Panel("Engine, mean per request", "µs", {
        "{{model}}": f"sum by (model) (rate(nv_inference_compute_infer_duration_us{RATE}))"
        f" / sum by (model) (rate(nv_inference_request_success{RATE}))"
    }),
    Panel("Pending", "short", {"{{model}}": "sum by (model) (nv_inference_pending_request_count)"}),
]  # fmt: skip


def dashboard(uid: str, title: str, panels: list[Panel], variables: list[dict[str, Any]]) -> dict[str, Any]:
    """Grafana's JSON: panels from left to right, 24 columns wide."""
    source = {"type": "prometheus", "uid": "prometheus"}
    drawn: list[dict[str, Any]] = []
    x = y = row = 0
    for number, panel in enumerate(panels, 1):
        height = 4 if panel.kind == "stat" else 8
        if x + panel.width > 24:
            x, y = 0, y + row
        row = height
        targets = [
            {"refId": chr(65 + index), "expr": expr, "legendFormat": legend, "datasource": source}
            for index, (legend, expr) in enumerate(panel.queries.items())
        ]
        drawn.append(
            {
                "id": number,
                "type": panel.kind,
                "title": panel.title,
                "description": panel.about,
                "datasource": source,
                "gridPos": {"x": x, "y": y, "w": panel.width, "h": height},
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "targets": targets,
            }
        )
        x += panel.width
    return {
        "uid": uid,
        "title": title,
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": drawn,
    }


MODEL = {
    "name": "model",
    "type": "query",
    "datasource": {"type": "prometheus", "uid": "prometheus"},
    "query": "label_values(eca_model_ready, model)",
    "refresh": 2,
    "multi": True,
    "includeAll": True,
    "current": {"text": "All", "value": "$__all"},
}


def files() -> dict[str, str]:
    """File name to its text."""
    made = {
        "service.json": dashboard("eca-service", "ECA Serve: the service", SERVICE, [MODEL]),
        "triton.json": dashboard("eca-triton", "ECA Serve: GPUs and Triton", TRITON, []),
    }
    return {name: json.dumps(found, indent=1, ensure_ascii=False) + "\n" for name, found in made.items()}


@click.command()
def main() -> None:
    """Writes deploy/grafana/dashboards anew from the tables in this script."""
    for name, text in files().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
