"""What doctor says of a service's metrics: one case for each thing that can be short."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from eca_service import metrics
from eca_service.diagnosis import Finding, Window, diagnose
from eca_service.metrics import Sample

SECONDS = 4.0
Series = Mapping[str, float]
QUIET: Series = {'eca_queue_depth{model="m"}': 0, 'eca_images_total{model="m"}': 0}


def samples(series: Series) -> list[Sample]:
    """Through the text that a service shows, so that what is parsed here is what is parsed there."""
    lines = sorted(f"{name} {value}" for name, value in series.items())
    return metrics.parse("\n".join([*lines, "# EOF\n"]))


def findings(before: Series, after: Series, max_batch: int = 8) -> list[Finding]:
    window = Window(samples({**QUIET, **before}), samples({**QUIET, **before, **after}), SECONDS)
    return list(diagnose(window, {"m": max_batch}))


def stages(images: int, decode_ms: float, queue_ms: float, infer_ms: float, batches: int, depth: int = 0) -> Series:
    """The series of a model that answered so many images, with these means."""
    found: dict[str, float] = {"eca_images_total": images, "eca_queue_depth": depth}
    found |= {"eca_batch_size_count": batches, "eca_batch_size_sum": images}
    series = {f'{name}{{model="m"}}': value for name, value in found.items()}
    for stage, mean_ms in (("decode", decode_ms), ("queue", queue_ms), ("infer", infer_ms)):
        series[f'eca_stage_seconds_count{{model="m",stage="{stage}"}}'] = images
        series[f'eca_stage_seconds_sum{{model="m",stage="{stage}"}}'] = images * mean_ms / 1000
    return series


def test_a_quiet_service_is_said_to_be_quiet() -> None:
    assert findings({}, {}) == [Finding("There were no requests in 4 s.")]


def test_a_busy_service_that_is_well_has_its_figures_alone() -> None:
    said = findings({}, stages(400, 3, 2, 10, 100))
    assert said == [
        Finding(
            "m: 100 images/s; on average 3.0 ms to decode, 2.0 ms waiting, 10.0 ms in the engine, "
            "4.0 images in a batch."
        )
    ]


@pytest.mark.parametrize(
    ("after", "max_batch", "word", "wrong"),
    [
        (stages(400, 3, 700, 40, 50, depth=80), 16, "cannot keep up", True),
        ({'eca_queue_depth{model="m"}': 7}, 8, "none is answered", True),
        (stages(400, 3, 50, 10, 400), 1, "--max-batch", True),
        (stages(400, 3, 50, 40, 50), 8, "batches are full", False),
        (stages(400, 30, 0.1, 5, 400), 8, "more cores for gateways", False),
        (stages(400, 3, 0.1, 5, 400), 8, "hardly any has to wait", False),
        ({'eca_rejected_total{reason="overloaded"}': 3}, 8, "ECA_MAX_INFLIGHT_IMAGES", True),
        ({'eca_rejected_total{reason="deadline"}': 3}, 8, "deadlines", True),
        ({'eca_rejected_total{reason="rate_limited"}': 3}, 8, "ECA_RATE_LIMIT", False),
        ({'eca_requests_total{model="m",code="backend_unavailable"}': 5}, 8, "5 backend_unavailable", True),
    ],
)
def test_what_is_short_is_named(after: Series, max_batch: int, word: str, wrong: bool) -> None:
    said = findings({}, after, max_batch)
    assert [one.wrong for one in said if word in one.text] == [wrong], said
    assert any(one.wrong for one in said) == wrong


def test_what_happened_before_is_told_but_not_wrong_now() -> None:
    before = {
        'eca_requests_total{model="m",code="ok"}': 900,
        'eca_requests_total{model="m",code="image_undecodable"}': 50,
        'eca_requests_total{model="m",code="deadline_exceeded"}': 50,
        'eca_rejected_total{reason="overloaded"}': 50,
    }
    said = findings(before, {})
    assert said[0] == Finding("Before that 5.0% of 1000 requests failed: 50 deadline_exceeded.")
    assert not any(one.wrong for one in said)


def test_probes_and_scrapes_are_no_requests_that_went_well() -> None:
    """Of models there are ten thousand times as few, and a tenth of these fails."""
    before = {
        'eca_requests_total{model="m",code="ok"}': 90,
        'eca_requests_total{model="m",code="internal"}': 10,
        'eca_requests_total{model="unmatched",code="ok"}': 500_000,
        'eca_requests_total{model="unmatched",code="404"}': 500_000,
    }
    assert findings(before, {})[0] == Finding("Before that 10.0% of 100 requests failed: 10 internal.")
    before['eca_requests_total{model="unmatched",code="internal"}'] = 100  # before it was known of which model
    assert findings(before, {})[0] == Finding("Before that 55.0% of 200 requests failed: 110 internal.")
