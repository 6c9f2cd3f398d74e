"""How the log is written, to stderr: one JSON object a line, or text for people."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from datetime import datetime, timezone

from eca_service.unblocked import Unblocked, may_block

_encode = json.JSONEncoder(default=str).encode  # json.dumps would make one for every line
# Of these libraries only warnings and worse: at debug level Pillow tells what is in images, others what is in headers,
# and gRPC of its event loop with every call.
CHATTY = ("PIL", "httpx", "httpcore", "asyncio", "python_multipart", "urllib3", "grpc")
SELDOM_S = 60.0


def start(form: str | None, level: str) -> None:
    """Has everything that is logged written as `form`, json or text; None: text on a terminal, else json."""
    handler = _handler()
    handler.addFilter(Seldom("opentelemetry"))
    handler.setFormatter(JsonLines() if (form or ("text" if sys.stderr.isatty() else "json")) == "json" else Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # what no line of ours shows need not be found out for each
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # gRPC's core writes a line of its own for whoever sends it nonsense; it reads this when it is first used
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_tells)


def _handler() -> logging.Handler:
    try:
        descriptor = sys.stderr.fileno()
        return Unblocked(descriptor) if may_block(descriptor) else logging.StreamHandler()
    except (AttributeError, OSError, ValueError):  # closed, or none; or what reads it is another user's
        return logging.StreamHandler()


class Seldom(logging.Filter):
    """Of what one line of code of the library `name` has to say, one record a minute.

    While no collector answers OpenTelemetry says so for every batch, and for each time that it tries again.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._told: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is written."""
        if not super().filter(record):
            return True  # another's
        place, now = (record.pathname, record.lineno), time.monotonic()
        if now - self._told.get(place, -SELDOM_S) < SELDOM_S:
            return False
        self._told[place] = now
        return True


def _tells(record: logging.LogRecord) -> bool:
    """Not so what grpc.aio writes, with a traceback, where a call's deadline passed or its caller left just as its
    answer was being sent: it knows of that only where the news comes before the failure. Nor what it writes of metadata
    and methods that are no UTF-8: it repeats them, keys too, and whoever likes has it write some at each call."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, UnicodeDecodeError) and not (
        type(error).__name__ == "ExecuteBatchError" and str(error).startswith('Failed "execute_batch"')
    )


class JsonLines(logging.Formatter):
    """time (UTC), level, logger, message, what the record has as `fields`, and the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


class Text(logging.Formatter):
    """The same for people; fields as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, without a traceback."""
        fields = (f"{name}={_plain(value)}" for name, value in getattr(record, "fields", {}).items())
        return " ".join([super().formatMessage(record), *fields])


def _plain(value: object) -> object:
    return ",".join(f"{name}:{part}" for name, part in value.items()) if isinstance(value, dict) else value
