"""All metrics of the service; the only module that knows prometheus_client."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, multiprocess, values
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# Set in each of several workers: what they count lies in files there, and each shows the sum over all.
# prometheus_client keeps no exemplars then.
FOLDER, WORKER = "PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROC_WORKER"
SHARED = os.environ.get(FOLDER)
# its files, and their bytes, enough for forty models
ROOM = {"histogram": 1 << 20} | dict.fromkeys(("counter", "gauge_livesum", "gauge_livemin", "gauge_livemax"), 1 << 17)
if SHARED:
    values.ValueClass = values.MultiProcessValue(lambda: os.environ[WORKER])

registry = CollectorRegistry()
requests = Counter("eca_requests", "Requests answered.", ["protocol", "model", "code"], registry=registry)
request_seconds = Histogram(
    "eca_request_seconds",
    "Time to answer a request, from the last byte of its body.",
    ["protocol", "model"],
    buckets=SECONDS,
    registry=registry,
)
stage_seconds = Histogram(
    "eca_stage_seconds", "Time in one stage of a request.", ["stage", "model"], buckets=SECONDS, registry=registry
)
images = Counter("eca_images", "Images classified.", ["model"], registry=registry)
batch_size = Histogram(
    "eca_batch_size",
    "Images sent to Triton in one batch, golden ones included.",
    ["model"],
    buckets=(1, 2, 4, 8, 16, 32, 64),
    registry=registry,
)
queue_depth = Gauge(
    "eca_queue_depth", "Images waiting for the engine.", ["model"], registry=registry, multiprocess_mode="livesum"
)
inflight = Gauge("eca_inflight", "Requests being answered.", registry=registry, multiprocess_mode="livesum")
rejected = Counter("eca_rejected", "Requests refused at once.", ["reason"], registry=registry)
model_ready = Gauge(
    "eca_model_ready",
    "1 when the version that is served gives its golden answers.",
    ["model", "version"],
    registry=registry,
    multiprocess_mode="livemin",
)
model_refused = Gauge(
    "eca_model_refused",
    "1 for a version that does not load, or does not give its golden answers.",
    ["model", "version"],
    registry=registry,
    multiprocess_mode="livemax",
)
engine_mismatch = Gauge(
    "eca_engine_mismatch",
    "1 for a version whose engine cannot run here.",
    ["model", "version"],
    registry=registry,
    multiprocess_mode="livemax",
)
build_info = Info("eca_build", "What is running.", registry=registry)
build_info.info({"version": version("eca-serve")})
shown = registry
if SHARED:
    shown = CollectorRegistry()
    multiprocess.MultiProcessCollector(shown, SHARED)
    shown.register(build_info)


@functools.cache
def certificate_expiry() -> Gauge:
    """The gauge of when the certificate expires, made when it is first set: without labels it would begin as 0."""
    return Gauge(
        "eca_tls_certificate_expiry_timestamp_seconds",
        "When the certificate of both ports expires, as Unix time; there is none without TLS.",
        registry=registry,
        multiprocess_mode="livemin",
    )


def shared_by(folder: Path, worker: int) -> dict[str, str]:
    """The environment of one of several workers that count in `folder`."""
    return {FOLDER: str(folder), WORKER: str(worker)}


def reserve(folder: Path, worker: int) -> None:
    """Makes the files of a worker. They are mapped: where the disk is full later, one with holes would be a SIGBUS.

    Raises OSError.
    """
    for kind, size in ROOM.items():
        path = folder / f"{kind}_{worker}.db"
        with path.open("xb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None


def ended(folder: Path, worker: int) -> None:
    """Ends the gauges of a worker that is no more; what it has counted stays, and its successor goes on from there."""
    for file in folder.glob(f"gauge_*_{worker}.db"):
        with file.open("r+b") as used:  # not removed: its room stays ours; it begins with the bytes that are used
            used.write(bytes(8))


def forget(gauge: Gauge, model: str, version: int) -> None:
    """Ends the series of a version in one of the gauges above; there may be none."""
    if SHARED:  # where prometheus_client cannot remove any
        gauge.labels(model, str(version)).set(float("nan"))
    else:
        gauge.remove(model, str(version))


def exposition() -> bytes:
    """All metrics in OpenMetrics text."""
    text: bytes = generate_latest(shown)
    if SHARED:
        text = b"\n".join(line for line in text.split(b"\n") if not line.endswith(b" NaN"))
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
