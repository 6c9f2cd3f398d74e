"""What two looks at a running service's metrics say, in sentences: what it does, where it is short, what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eca_service.errors import CODES
from eca_service.metrics import Sample

FEW = 10  # images; of fewer no mean is worth a sentence
LONG_WAIT_S = 0.5  # the threshold of the latency objective
BUDGET = 0.001  # of the requests may fail, see deploy/prometheus/rules
REFUSED = {
    "overloaded": "as many images or bytes are in flight as are allowed (ECA_MAX_INFLIGHT_IMAGES, ..._BYTES)",
    "deadline": "their answers would have come after their deadlines",
    "draining": "the service is ending",
    "rate_limited": "callers sent more than ECA_RATE_LIMIT allows",
}


@dataclass(frozen=True)
class Finding:
    """One sentence; `wrong` where somebody must do something."""

    text: str
    wrong: bool = False


class Window:
    """Two scrapes of one service, `seconds` apart."""

    def __init__(self, before: Sequence[Sample], after: Sequence[Sample], seconds: float) -> None:
        self._before, self._after, self.seconds = before, after, seconds

    def now(self, name: str, **labels: str) -> float:
        """The sum of all series of that name that have these labels."""
        return _sum(self._after, name, labels)

    def gained(self, name: str, **labels: str) -> float:
        """By how much that sum has grown."""
        return max(0.0, self.now(name, **labels) - _sum(self._before, name, labels))

    def earlier(self, name: str, **labels: str) -> float:
        """What that sum was before."""
        return self.now(name, **labels) - self.gained(name, **labels)

    def mean(self, histogram: str, **labels: str) -> float:
        """The mean of what a histogram took in between; 0 where that is nothing."""
        count = self.gained(f"{histogram}_count", **labels)
        return self.gained(f"{histogram}_sum", **labels) / count if count else 0.0

    def values(self, name: str, label: str) -> list[str]:
        """All values that a label of a metric has, sorted."""
        return sorted({sample.labels[label] for sample in self._after if sample.name == name})


def diagnose(window: Window, max_batch: Mapping[str, int]) -> Iterator[Finding]:
    """What is worth saying; `max_batch` holds the images that one batch may have, by model."""
    yield from _failures(window)
    yield from _refusals(window)
    models = window.values("eca_queue_depth", "model")
    if not any(window.gained("eca_images_total", model=model) for model in models):
        yield Finding(f"There were no requests in {window.seconds:.0f} s.")
    for model in models:
        yield from _model(window, model, max_batch.get(model, 0))


def _failures(window: Window) -> Iterator[Finding]:
    ours = [code for code in window.values("eca_requests_total", "code") if code in CODES and CODES[code].http >= 500]
    failed = {code: window.gained("eca_requests_total", code=code) for code in ours}
    if any(failed.values()):
        listed = ", ".join(f"{count:.0f} {code}" for code, count in failed.items() if count)
        yield Finding(f"Requests failed in {window.seconds:.0f} s: {listed}.", wrong=True)
    earlier = {code: window.earlier("eca_requests_total", code=code) for code in failed}
    probes = [code for code in window.values("eca_requests_total", "code") if code == "ok" or code.isdigit()]
    all_earlier = window.earlier("eca_requests_total") - sum(  # as the recording rules count
        window.earlier("eca_requests_total", model="unmatched", code=code) for code in probes
    )
    if sum(earlier.values()) > BUDGET * all_earlier:
        listed = ", ".join(f"{count:.0f} {code}" for code, count in earlier.items() if count)
        share = sum(earlier.values()) / all_earlier
        yield Finding(f"Before that {share:.1%} of {all_earlier:.0f} requests failed: {listed}.")


def _refusals(window: Window) -> Iterator[Finding]:
    for reason in window.values("eca_rejected_total", "reason"):
        if count := window.gained("eca_rejected_total", reason=reason):
            why = REFUSED.get(reason, reason)
            yield Finding(
                f"{count:.0f} requests were refused in {window.seconds:.0f} s: {why}.", reason != "rate_limited"
            )


def _model(window: Window, model: str, max_batch: int) -> Iterator[Finding]:
    images = window.gained("eca_images_total", model=model)
    rate, depth = images / window.seconds, window.now("eca_queue_depth", model=model)
    if depth and not images:
        yield Finding(f"{model}: {depth:.0f} images wait and none is answered; look at Triton's log.", wrong=True)
    if images < FEW:
        if images:
            yield Finding(f"{model}: {images:.0f} images in {window.seconds:.0f} s; --seconds 30 looks for longer.")
        return
    decode, queue, infer = (
        window.mean("eca_stage_seconds", stage=stage, model=model) for stage in ("decode", "queue", "infer")
    )
    batch = window.mean("eca_batch_size", model=model)
    yield Finding(
        f"{model}: {rate:.0f} images/s; on average {_ms(decode)} to decode, {_ms(queue)} waiting, "
        f"{_ms(infer)} in the engine, {batch:.1f} images in a batch."
    )
    wait_s = depth / rate
    if wait_s > LONG_WAIT_S:
        yield Finding(
            f"{model}: {depth:.0f} images wait, for about {wait_s:.1f} s; the engine cannot keep up: "
            "add a Triton or a GPU, or build a faster engine.",
            wrong=True,
        )
    yield from _batching(model, decode, queue, infer, batch, max_batch)


def _batching(model: str, decode: float, queue: float, infer: float, batch: float, max_batch: int) -> Iterator[Finding]:
    """Why batches are as large as they are. What waits while the engine is busy leaves together, nothing else does."""
    if queue > infer and max_batch == 1:
        yield Finding(
            f"{model}: images wait, and its engine takes one at a time; "
            "build it with a larger --max-batch, so that they share a batch.",
            wrong=True,
        )
    elif queue > infer and batch > 0.9 * max_batch > 0:
        yield Finding(
            f"{model}: batches are full ({max_batch} images) and more wait; a larger --max-batch may speed it up."
        )
    elif batch < 1.5 and decode > 2 * infer:
        yield Finding(
            f"{model}: images come to the engine one by one, because decoding takes longer than it does; "
            "more cores for gateways would help, more Tritons would not."
        )
    elif batch < 1.5:
        yield Finding(
            f"{model}: batches hold one image, because hardly any has to wait; one caller cannot be served "
            "faster. Several images in a request, or more callers at once, fill batches."
        )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _sum(samples: Sequence[Sample], name: str, labels: Mapping[str, str]) -> float:
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())
