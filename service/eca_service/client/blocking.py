"""The blocking client."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from eca_service.client import calls
from eca_service.client.address import as_address, as_key, shown
from eca_service.client.answers import Classification, Explanation, Model, Overlay
from eca_service.client.calls import DEFAULT_URL, Call, Image
from eca_service.client.failures import ClientError, Retry
from eca_service.client.files import BATCH, CONCURRENCY, FileResult, as_names, batches, halves, joined, patience_s
from eca_service.client.over_http import Http
from eca_service.client.threads import Threads, result_of

if TYPE_CHECKING:
    from eca_service.client.over_grpc import Grpc

T = TypeVar("T")


class Client:
    """A service at `url`; several threads may share one client, which keeps its connections until it is closed.

    `key` is an API key or a token, `ca` a file of the authorities (PEM) to trust instead of the system's, `pinned`
    says that it is the service's own certificate, trusted whatever names it has. Every call may take `timeout_s`,
    tries and pauses included, and raises ClientError.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        ca: Path | None = None,
        pinned: bool = False,
        timeout_s: float = 30.0,
        retry: Retry = Retry(),  # noqa: B008  it is frozen
    ) -> None:
        self.url, key = as_address(url), as_key(key)
        self.timeout_s = timeout_s
        self.retry = retry
        self._known = False  # it has answered
        self._transport: Http | Grpc
        if self.url.startswith(("grpc://", "grpcs://")):
            from eca_service.client.over_grpc import Grpc

            self._transport = Grpc(self.url, key, ca)
        else:
            self._transport = Http(self.url, key, ca, pinned)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def classify(
        self,
        image: Image,
        model: str | None = None,
        *,
        version: int | None = None,
        top_k: int | None = None,
        timeout_s: float | None = None,
    ) -> Classification:
        """One image's `top_k` best classes (without: 5, or all of fewer), by `model` or the service's default one."""
        return calls.only(self._ask(calls.classify([calls.content(image)], model, version, top_k), timeout_s))

    def classify_batch(
        self,
        images: Sequence[Image],
        model: str | None = None,
        *,
        version: int | None = None,
        top_k: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Classification | ClientError]:
        """Several images in one request: for each its answer, or the error that it alone met.

        Raises the request's error; where some files could not be read, it stands in the places of the others.
        """
        contents, unread = calls.contents(images)
        if not contents:
            return [unread[place] for place in range(len(images))]
        try:
            found = self._ask(calls.classify(contents, model, version, top_k), timeout_s)
        except ClientError as error:
            found = calls.of_each(error, len(contents), unread)
        return calls.in_places(found, unread)

    def classify_files(
        self,
        paths: Iterable[str | os.PathLike[str]],
        model: str | Sequence[str] | None = None,
        *,
        top_k: int | None = None,
        concurrency: int = CONCURRENCY,
        batch: int = BATCH,
        timeout_s: float | None = None,
    ) -> Iterator[FileResult]:
        """Each file's answer, in their order, as they come: `batch` files a request, `concurrency` requests at once.

        Where the service takes less in one request, they are sent in smaller ones. Without `timeout_s` a request may
        take 5 s longer than the client's for each image that is asked at once, as slow services need.

        By several models each file is decoded once, and has one result for each.

        An error is the file's own and ends nothing; `paths` is read no further than needed.
        """
        models = as_names(model)
        if timeout_s is None:
            timeout_s = patience_s(self.timeout_s, len(models) if len(models) > 1 else batch, concurrency)

        def ask(group: list[Path]) -> list[FileResult]:
            try:
                if len(models) > 1:
                    compared = self.compare(group[0], models, top_k=top_k, timeout_s=timeout_s)
                    return joined(group, models, [compared[name] for name in models])
                name = models[0] if models else None
                found = joined(group, models, self.classify_batch(group, name, top_k=top_k, timeout_s=timeout_s))
            except ClientError as error:
                found = joined(group, models, error)
            smaller = halves(group, found)
            return [result for half in smaller for result in ask(half)] if smaller else found

        threads = Threads(concurrency, ask)
        running: deque[Future[list[FileResult]]] = deque()
        try:
            for group in batches(paths, 1 if len(models) > 1 else batch):
                running.append(threads.submit(group))
                if len(running) >= 2 * concurrency:
                    yield from result_of(running.popleft())
            while running:
                yield from result_of(running.popleft())
        finally:
            for future in running:
                future.cancel()
            threads.close()

    def explain(
        self,
        image: Image,
        model: str,
        wanted: str | int | None = None,
        *,
        top_k: int | None = None,
        gates: bool = False,
        timeout_s: float | None = None,
    ) -> Explanation:
        """The class activation map of the class `wanted`, a label or an index; without one, of the best class."""
        return self._ask(calls.explain(calls.content(image), model, wanted, top_k, gates), timeout_s)

    def overlay(
        self,
        image: Image,
        model: str,
        wanted: str | int | None = None,
        *,
        opacity: float = 0.6,
        side: int = 1024,
        timeout_s: float | None = None,
    ) -> Overlay:
        """The same map drawn over the image, `side` pixels at the longer side at most; `opacity` is in [0, 1]."""
        return self._ask(calls.overlay(calls.content(image), model, wanted, opacity, side), timeout_s)

    def compare(
        self,
        image: Image,
        models: str | Sequence[str] | None = None,
        *,
        top_k: int | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Classification | ClientError]:
        """Several models' answers by name; without `models` the default one's family: plain, SE, ECA."""
        return self._ask(calls.compare(calls.content(image), models, top_k), timeout_s)

    def models(self, timeout_s: float | None = None) -> list[Model]:
        """All models served."""
        return self._ask(calls.models(), timeout_s)

    def metrics(self, timeout_s: float | None = None) -> str:
        """The service's metrics as OpenMetrics text."""
        return self._ask(calls.metrics(), timeout_s)

    def default_model(self, timeout_s: float | None = None) -> str:
        """The name of the model that answers where none is named."""
        return self._ask(calls.default_model(), timeout_s)

    def unready(self, timeout_s: float = 10.0) -> str | None:
        """None where the service is ready, else a sentence that says why it is not."""
        try:
            reasons = self._ask(calls.ready(), timeout_s)
        except ClientError as error:
            return error.detail
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        return f"the service at {shown(self.url)} is not ready: {told}" if reasons else None

    def pin(self, model: str, version: int | None = None) -> int | None:
        """Has the model served in `version`, or in the one before; `key` must be the management token."""
        return self._ask(calls.pin(model, version), None)

    def unpin(self, model: str) -> int | None:
        """Has the model served in its newest version again; `key` must be the management token."""
        return self._ask(calls.unpin(model), None)

    def _ask(self, call: Call[T], timeout_s: float | None) -> T:
        due = calls.due(self.timeout_s if timeout_s is None else timeout_s)
        for attempt in count(1):
            try:
                answer = self._transport.ask(call, calls.left_s(due))
                self._known = True
                return answer
            except ClientError as error:
                pause_s = self.retry.pause_s(error, attempt, calls.left_s(due), self._known)
                if pause_s is None or not call.idempotent:
                    raise
            time.sleep(pause_s)
        raise AssertionError("it counts for ever")
