"""All metrics of the service; the only module that knows prometheus_client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

registry = CollectorRegistry()
requests = Counter("eca_requests", "Requests answered.", ["protocol", "model", "code"], registry=registry)
request_seconds = Histogram(
    "eca_request_seconds", "Time to answer a request.", ["protocol", "model"], buckets=SECONDS, registry=registry
)
stage_seconds = Histogram(
    "eca_stage_seconds", "Time in one stage of a request.", ["stage", "model"], buckets=SECONDS, registry=registry
)
images = Counter("eca_images", "Images classified.", ["model"], registry=registry)
batch_size = Histogram(
    "eca_batch_size", "Images sent to Triton at once.", ["model"], buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
)
queue_depth = Gauge("eca_queue_depth", "Images waiting for the engine.", ["model"], registry=registry)
inflight = Gauge("eca_inflight", "Requests being answered.", registry=registry)
rejected = Counter("eca_rejected", "Requests refused at once.", ["reason"], registry=registry)
model_ready = Gauge(
    "eca_model_ready", "1 when the model gives its golden answers.", ["model", "version"], registry=registry
)
build_info = Info("eca_build", "What is running.", registry=registry)
build_info.info({"version": version("eca-serve")})


def forget_version(model: str, version: int) -> None:
    """Ends the series of a version that is no longer loaded."""
    model_ready.remove(model, str(version))


def exposition() -> bytes:
    """All metrics in OpenMetrics text."""
    text: bytes = generate_latest(registry)
    return text


@dataclass(frozen=True)
class Sample:
    """One series' value in a scrape."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse(text: str) -> list[Sample]:
    """The samples of an OpenMetrics text; ValueError where it is none."""
    families = text_string_to_metric_families(text)
    return [Sample(one.name, one.labels, float(one.value)) for family in families for one in family.samples]
