"""The two forms of the log."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
from eca_service import logs
from eca_service.logs import JsonLines, Text


def record(message: str, *arguments: object, fields: dict[str, object] | None = None) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "a.b", "levelname": "WARNING", "msg": message, "args": arguments})
    if fields:
        made.fields = fields
    return made


def test_json_is_one_line_whatever_it_holds() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        failed = record("it\n%s", "\u2028\x00é", fields={"ms": {"total": 1.5}, "status": 200})
        failed.exc_info = sys.exc_info()
    text = JsonLines().format(failed)
    assert len(text.splitlines()) == 1
    line = json.loads(text)
    assert (line["level"], line["logger"], line["message"]) == ("warning", "a.b", "it\n\u2028\x00é")
    assert (line["ms"], line["status"]) == ({"total": 1.5}, 200)
    assert "ValueError: first\nsecond" in line["exception"]


def test_text_is_for_people() -> None:
    text = Text().format(record("request", fields={"code": "ok", "ms": {"decode": 1.5, "total": 2}}))
    assert text.endswith("WARNING a.b request code=ok ms=decode:1.5,total:2")


def test_where_there_is_no_terminal_it_is_json_and_warnings_are_in_it() -> None:
    script = (
        "import warnings; from eca_service import logs; logs.start(None, 'info'); warnings.warn('look', stacklevel=1)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (line["level"], line["logger"], "look" in line["message"]) == ("warning", "py.warnings", True)


def test_at_debug_level_grpc_does_not_tell_of_each_call() -> None:
    script = """if True:
        import asyncio, grpc
        from eca_service import logs
        logs.start("json", "debug")
        async def call():
            async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
                await channel.unary_unary("/a/b")(b"", timeout=0.1)
        try:
            asyncio.run(call())
        except grpc.RpcError:
            print("called")
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("called\n", "")


def test_a_collector_that_is_gone_is_told_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("eca_service.logs.time.monotonic", lambda: now)
    seldom, theirs, ours = logs.Seldom("opentelemetry"), "opentelemetry.exporter", "eca_service.journal"

    def written(name: str, line: int) -> bool:
        made = logging.makeLogRecord({"name": name, "pathname": "exporter.py", "lineno": line})
        return bool(seldom.filter(made))

    assert [written(theirs, 1), written(theirs, 1), written(theirs, 2)] == [True, False, True]
    assert [written(ours, 1), written(ours, 1)] == [True, True]
    now = 59.0
    assert not written(theirs, 1)
    now = 60.0
    assert written(theirs, 1)


def test_a_caller_who_left_as_the_answer_was_sent_is_no_error() -> None:
    """grpc.aio's own error: only by chance does a call of a busy service meet it (once in about 1,500 deadlines)."""
    script = """if True:
        import logging
        from grpc._cython import cygrpc
        from eca_service import logs
        logs.start("json", "info")
        for reason in 'Failed "execute_batch": (<grpc._cython.cygrpc.SendMessageOperation>,)', "Failed: 8":
            try:
                raise cygrpc.ExecuteBatchError(reason)
            except Exception:
                logging.getLogger(cygrpc.__name__).exception("ExecuteBatchError raised in core by servicer method")
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["exception"].endswith("ExecuteBatchError: Failed: 8")


def test_metadata_that_are_no_text_are_not_repeated() -> None:
    """grpc.aio does so, with a traceback, for whoever sends some."""
    script = """if True:
        import logging
        from grpc._cython import cygrpc
        from eca_service import logs
        logs.start("json", "info")
        try:
            b"Bearer secret\\xff".decode()
        except UnicodeDecodeError as error:
            logging.getLogger(cygrpc.__name__).exception("Invalid encoding on %s", error.object)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
