"""What is written down of every request, whatever its protocol: its id, its metrics."""

from __future__ import annotations

import re
import time
import uuid

from eca_service import metrics

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
UNMATCHED = "unmatched"


class Entry:
    """One request: `model` and `code` are filled in while it is answered; `close` counts it.

    `given_id` is kept as the request's id where it is a sound one, else a new one is made.
    """

    __slots__ = ("code", "model", "protocol", "request_id", "started")

    def __init__(self, protocol: str, given_id: str = "") -> None:
        self.protocol = protocol
        self.request_id = given_id if REQUEST_ID.fullmatch(given_id) else uuid.uuid4().hex
        self.model = UNMATCHED
        self.code = "ok"
        self.started = time.perf_counter()

    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self.started

    def close(self) -> None:
        """Counts the request; once."""
        metrics.requests.labels(self.protocol, self.model, self.code).inc()
        metrics.request_seconds.labels(self.protocol, self.model).observe(self.seconds())
