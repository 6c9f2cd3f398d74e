"""Calls that read or write the repository, whose file system may hang: a network's does where its server is gone."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE_S = 2.0
_hanging: set[Future[Any]] = set()  # for which nobody waits any more


class NoAnswer(OSError):
    """The file system does not answer."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "its file system does not answer")


async def call(function: Callable[..., T], *arguments: object, patience_s: float = PATIENCE_S) -> T:
    """What `function` returns or raises. It has a thread of its own, which holds up neither others nor the process's
    end.

    Raises NoAnswer where it takes longer than `patience_s`, and at once while one that did so still hangs.
    """
    if _hanging:
        raise NoAnswer
    outcome = _begin(function, arguments)
    awaited = asyncio.wrap_future(outcome)
    try:
        done, _ = await asyncio.wait({awaited}, timeout=patience_s)
        if not done:
            _hanging.add(outcome)
            outcome.add_done_callback(_hanging.discard)
            raise NoAnswer
        return awaited.result()
    finally:
        awaited.cancel()


async def is_folder(path: Path) -> bool | None:
    """Whether there is a folder; None where the file system does not answer."""
    try:
        return await call(os.path.isdir, path)  # pathlib's raises where the file system is gone
    except NoAnswer:
        return None


def patiently(tell: Callable[[], None], function: Callable[..., T], *arguments: object) -> T:
    """What `function` returns or raises, however long it takes; after PATIENCE_S `tell` says that it is waited for.

    For a start, which can be ended by a signal meanwhile.
    """
    outcome = _begin(function, arguments)
    if not wait({outcome}, PATIENCE_S).done:
        tell()
    return outcome.result()


def _begin(function: Callable[..., T], arguments: tuple[object, ...]) -> Future[T]:
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()
    threading.Thread(target=_run, args=(outcome, function, arguments), name="disk", daemon=True).start()
    return outcome


def _run(outcome: Future[T], function: Callable[..., T], arguments: tuple[object, ...]) -> None:
    try:
        outcome.set_result(function(*arguments))
    except BaseException as error:  # whatever it is, it is the caller's
        outcome.set_exception(error)
