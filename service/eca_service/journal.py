"""What is written down of every request, whatever its protocol: its id, and one set of figures.

The histograms, the log's line, the trace's spans and the Server-Timing header all show these figures; the histogram of
requests alone leaves out what the body took to come, which is its caller's time.
"""

from __future__ import annotations

import logging
import random
import re
import time

from eca_service import metrics
from eca_service.errors import ServiceError
from eca_service.tracing import Trace

logger = logging.getLogger(__name__)
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
UNMATCHED = "unmatched"


class Entry:
    """One request; what becomes known while it is answered is filled in, `close` writes it down.

    `given_id` is kept as the request's id where it is a sound one, else a new one is made. `quiet` requests, such as
    health checks, are logged at debug level. `size` is the body's, in bytes, and `receive_s` how long it took to come;
    `caller` the name of the key that was used, `account` whose rate limit it counts for; `status` HTTP's number or
    gRPC's name; `reason` why the service failed, in the words of the answer.
    """

    __slots__ = (
        *("account", "caller", "code", "images", "model", "protocol", "quiet", "reason", "receive_s", "request_id"),
        *("route", "seconds", "size", "stages", "started", "status", "trace"),
    )

    def __init__(self, protocol: str, given_id: str = "", trace: Trace | None = None, quiet: bool = False) -> None:
        self.protocol = protocol
        # no secret, so nothing is asked of the system: that lets the decoders have the interpreter, and waits for it
        self.request_id = given_id if REQUEST_ID.fullmatch(given_id) else f"{random.getrandbits(128):032x}"
        self.trace = trace
        self.quiet = quiet
        self.account = self.caller = self.reason = self.route = ""
        self.model = UNMATCHED
        self.code = "ok"
        self.status: int | str = ""
        self.images = self.size = 0
        self.stages: dict[str, float] = {}
        self.receive_s = self.seconds = 0.0
        self.started = time.perf_counter()

    def arrived(self, size: int) -> None:
        """A piece of the body is there, of `size` bytes."""
        self.size += size
        self.receive_s = time.perf_counter() - self.started

    def stage(self, name: str, model: str, began: float, seconds: float) -> None:
        """One image was in stage `name` for `seconds`, from `began` of time.perf_counter's clock."""
        metrics.stage_seconds.labels(name, model).observe(seconds, self._exemplar())
        self.stages[name] = max(seconds, self.stages.get(name, 0.0))
        if self.trace:
            self.trace.stage(name, began, seconds)

    def failed(self, error: ServiceError) -> None:
        """The answer is this error; the log says why where that is no fault of the caller's."""
        self.code = error.code
        if error.kind.http >= 500:
            self.reason = error.detail

    def answered(self) -> float:
        """The answer is there: the seconds that it took, which are now the request's."""
        self.seconds = time.perf_counter() - self.started
        return self.seconds

    def server_timing(self) -> str:
        """The value of a Server-Timing header (W3C), where nothing is known of the stages."""
        return f"total;dur={1000 * (self.seconds or self.answered()):.3f}"

    def close(self) -> None:
        """Counts and logs the request and ends its span; once."""
        seconds = self.seconds or self.answered()
        metrics.requests.labels(self.protocol, self.model, self.code).inc()
        metrics.request_seconds.labels(self.protocol, self.model).observe(seconds - self.receive_s, self._exemplar())
        level = logging.DEBUG if self.quiet else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, "request", extra={"fields": self._fields(seconds)})
        if self.trace:
            self.trace.end(self.route, self.protocol, self.status, self._attributes())

    def _exemplar(self) -> dict[str, str] | None:
        return {"trace_id": self.trace.trace_id} if self.trace else None

    def _fields(self, seconds: float) -> dict[str, object]:
        spent = {"receive": self.receive_s, **self.stages, "total": seconds}
        fields: dict[str, object] = {
            "request_id": self.request_id,
            "protocol": self.protocol,
            "route": self.route,
            "model": self.model,
            "code": self.code,
            "status": self.status,
            "ms": {name: round(1000 * stage_s, 3) for name, stage_s in spent.items()},
            "bytes": self.size,
            "images": self.images,
        }
        if self.reason:
            fields["reason"] = self.reason
        if self.caller:
            fields["caller"] = self.caller
        if self.trace:
            fields["trace_id"] = self.trace.trace_id
        return fields

    def _attributes(self) -> dict[str, str | int]:
        return {
            "eca.request_id": self.request_id,
            "eca.model": self.model,
            "eca.code": self.code,
            "eca.images": self.images,
        }
