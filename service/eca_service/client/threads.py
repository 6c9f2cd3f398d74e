"""Threads that make requests and keep no process alive."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")
A = TypeVar("A")
LONGEST_WAIT_S = 0.2


class Threads(Generic[A, T]):
    """`count` threads that do `work`; a process that ends awaits none of them, as it would those of an executor.

    Raises ValueError where `count` is below 1.
    """

    def __init__(self, count: int, work: Callable[[A], T]) -> None:
        if count < 1:
            raise ValueError(f"at least one request is made at once, not {count}")
        self._count = count
        self._work = work
        self._todo: SimpleQueue[tuple[Future[T], A] | None] = SimpleQueue()
        for _ in range(count):
            Thread(target=self._run, name="eca-client", daemon=True).start()

    def submit(self, given: A) -> Future[T]:
        """What `work` makes of `given`, once a thread has come to it."""
        future: Future[T] = Future()
        self._todo.put((future, given))
        return future

    def close(self) -> None:
        """The threads end once they are done with what they have begun; nobody waits for that."""
        for _ in range(self._count):
            self._todo.put(None)

    def _run(self) -> None:
        while (one := self._todo.get()) is not None:
            future, given = one
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._work(given))
                except BaseException as error:  # whoever awaits the result has it
                    future.set_exception(error)


def result_of(future: Future[T]) -> T:
    """Its result, once there is one. A wait without an end would not notice a Ctrl-C that comes just as it begins."""
    while not future.done():
        wait([future], LONGEST_WAIT_S)
    return future.result()
