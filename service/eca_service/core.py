"""The one way of a classification, whatever protocol brings it: admitted, decoded, batched, inferred, named."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator, Sequence

from eca_service import disk, metrics
from eca_service.access import Access
from eca_service.admission import Admission, Margin, Permit, require_few, require_short
from eca_service.answers import Answer, Prediction, Result, best_classes
from eca_service.backend import Triton
from eca_service.batching import Totals
from eca_service.cancellation import all_of
from eca_service.class_map import Heads
from eca_service.contract import Contract
from eca_service.decoders import Decoders
from eca_service.engines import Engines
from eca_service.errors import ServiceError
from eca_service.imaging import Decoded
from eca_service.journal import Entry
from eca_service.peers import Peers
from eca_service.preflight import obstacle_of
from eca_service.readiness import Readiness
from eca_service.registry import Model, Registry
from eca_service.rollout import Rollout
from eca_service.settings import Settings
from eca_service.tracing import Tracing
from eca_service.triton.failures import NotLoaded
from eca_service.waiting import Row

INSTEAD_S = 5.0
PATIENCE_S = 15.0  # for the golden answers of a worker beside others that are ready


class Core:
    """What every protocol calls. It knows no protocol; its errors are `ServiceError`s."""

    def __init__(self, settings: Settings, peers: Peers) -> None:
        self.settings = settings
        self.peers = peers
        self.registry = Registry(settings.repository, settings.default_model, obstacle_of(settings.triton_url))
        address = settings.triton_url or f"127.0.0.1:{settings.triton_grpc_port}"
        self.triton = Triton(address, settings.triton_shared_memory)
        self.admission = Admission(settings.max_inflight_images, settings.max_inflight_bytes)
        self.margin = Margin()
        self.access = Access(settings, peers.folder)
        self.tracing = Tracing(settings.otlp_endpoint)
        self.engines = Engines(self.triton, self.tracing, settings.triton_threads or 1)
        self.rollout = Rollout(self.registry, self.triton.fleet, self.engines, settings.retire_ms / 1000)
        self.readiness = Readiness(self.registry, self.triton.fleet, self.engines, self.rollout, peers)
        self.leaving = False  # asked to end: no longer ready, but still answering
        self.draining = False  # refuses new requests
        self.hurried = False  # cuts off those that still run
        self.decoders = Decoders(settings)
        self.heads = Heads()
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Looks for Triton and asks for the golden answers, which it awaits for at most PATIENCE_S while another worker
        is ready: to listen without them would make all less ready than they are.
        """
        self.tracing.start()
        self._watch = asyncio.create_task(self.readiness.watch())
        end = time.monotonic() + PATIENCE_S
        while self.peers.others_ready and not self.readiness.ready and not self.leaving and time.monotonic() < end:
            await asyncio.sleep(0.05)
        self.peers.listening = True
        self.peers.tell(self.readiness.ready)

    async def close(self) -> None:
        """Ends what `start` began and closes the way to Triton."""
        self.leaving = self.draining = True
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self.rollout.close()
        await self.triton.close()
        await self.tracing.close()
        self.decoders.close()

    def enter(self, size: int, entry: Entry) -> Permit:
        """A permit for a request of `size` bytes, as announced. Raises draining, body_too_large, overloaded."""
        if self.draining:
            metrics.rejected.labels("draining").inc()
            raise ServiceError("draining", "the service is shutting down")
        if size > self.settings.max_body_bytes:
            raise self.too_large()
        return self.admission.enter(size, entry)

    def too_large(self) -> ServiceError:
        """What a body over the limit is answered."""
        return ServiceError("body_too_large", f"the body has more than {self.settings.max_body_bytes} bytes")

    @property
    def ready(self) -> bool:
        """Every model is golden, for every worker that listens, and the service is not shutting down."""
        return self.readiness.ready and not self.leaving and not self.peers.unready()

    def require(self, model: Model, deadline: float) -> None:
        """Raises what a request for `model` can be told before its body is read; `deadline` is of the loop's clock.

        That is: model_not_ready, deadline_exceeded, or overloaded where the answer would come too late.
        """
        self.readiness.require(model)
        self.require_time(model.contract, 1, deadline)

    def totals(self, *contracts: Contract) -> list[tuple[Contract, Totals]]:
        """What each model's engine has done; without `contracts` that of all that are served."""
        wanted = contracts or [model.contract for _, model in sorted(self.registry.models.items())]
        return [(contract, self.engines.of(contract).totals) for contract in wanted]

    @property
    def most_images(self) -> int:
        """The most images that a request may hold."""
        return min(self.settings.max_images, self.settings.max_inflight_images)

    async def classify(
        self,
        model: Model,
        images: Sequence[bytes | ServiceError],
        top_k: int,
        deadline: float,
        permit: Permit,
        version: int | None = None,
    ) -> Answer:
        """One Result for each entry of `images`, in their order; an entry that is an error already stays one.

        Where the request named no `version`, and `model` is unloaded before it is asked, what is served in its place
        answers. Raises ServiceError where the request as a whole fails: bad_request for none or too many images, and
        what refuses it before an image is decoded. `top_k` is 1 to the number of classes.
        """
        contract, entry = model.contract, permit.entry
        entry.images = len(images)
        if not images:
            raise ServiceError("bad_request", "the request holds no image; send its bytes as the body, or in a form")
        require_few(len(images), self.most_images)
        require_short(len(images), len(images) * top_k)
        if len(images) > 1:
            permit.grow(images=len(images) - 1)
            self.access.charge(entry.account, len(images) - 1)
            self.require_time(contract, len(images), deadline)
        try:
            return await self._classify(model, images, top_k, deadline, entry)
        except NotLoaded:
            other = None if version else await self._instead_of(model, deadline)
            if other is None or other.contract.classes < top_k:
                raise
        with self.registry.lease(other):
            return await self._classify(other, images, top_k, deadline, entry)

    async def _instead_of(self, model: Model, deadline: float) -> Model | None:
        """What is served in its place. Where its folder was deleted, Triton has unloaded it for the one before, which
        is awaited until its golden answers are there.
        """
        loop, name = asyncio.get_running_loop(), model.contract.name
        end = min(deadline, loop.time() + INSTEAD_S)
        while (now := self.registry.models.get(name)) == model:
            if loop.time() > end or await disk.is_folder(model.folder) is not False:
                return None
            await asyncio.sleep(0.02)
        return now

    async def _classify(
        self, model: Model, images: Sequence[bytes | ServiceError], top_k: int, deadline: float, entry: Entry
    ) -> Answer:
        totals = self.engines.of(model.contract).totals
        try:
            answer = await self._ask(model.contract, images, top_k, deadline, entry)
        except BaseException:  # who leaves has had no answer either
            totals.failed += 1
            raise
        answered = [result for result in answer.results if not result.error]
        if answered:
            totals.answered += 1
            totals.queue_s += max(result.queue_s for result in answered)
            totals.infer_s += max(result.infer_s for result in answered)
        else:
            totals.failed += 1
        return answer

    async def _ask(
        self, contract: Contract, images: Sequence[bytes | ServiceError], top_k: int, deadline: float, entry: Entry
    ) -> Answer:
        # a large request leaves the decoders to others too
        turns = asyncio.Semaphore(self.decoders.threads) if len(images) > 1 else contextlib.nullcontext()

        async def one(image: bytes | ServiceError) -> Result:
            try:
                if isinstance(image, ServiceError):
                    raise image
                async with turns:
                    decoded, decode_s = await self.decoders.decode(image, contract, entry)
            except ServiceError as error:
                turn.skip()
                return Result(error=error.anew())  # its own holds this frame, and so the image
            row = await turn.submit(decoded.pixels, deadline)
            try:
                return self.named(contract, row, top_k, decoded, decode_s, entry)
            except ServiceError as error:
                return Result(error=error.anew())

        loop, batcher = asyncio.get_running_loop(), self.engines.of(contract)
        hasty = deadline - loop.time() < 2 * batcher.costs.seconds(batcher.max_batch)  # its end says nothing of others'
        try:
            with self.suspicious(), batcher.turn(len(images), entry.trace) as turn:
                results = [await one(images[0])] if len(images) == 1 else await all_of(one(image) for image in images)
        finally:
            if not hasty:
                self.margin.learn(late=loop.time() >= deadline)
        return Answer(contract, results, entry.answered())

    @contextlib.contextmanager
    def suspicious(self) -> Iterator[None]:
        """Has the golden answers asked for at once where the service fails in it."""
        try:
            yield
        except ServiceError as error:
            if error.kind.http >= 500:
                self.readiness.suspect()
            raise

    def require_time(self, contract: Contract, images: int, deadline: float) -> None:
        """Raises deadline_exceeded, or overloaded where the answers to `images` more would come too late."""
        left_s = deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise ServiceError("deadline_exceeded", "the request's deadline passed before it was taken up")
        batcher = self.engines.of(contract)
        if batcher.idle and not self.decoders.busy:
            return  # nobody is ahead: what was learnt from others may not hold for this one, so it is tried
        encoded = max(self.decoders.busy, batcher.coming) + images
        wait_s = self.decoders.seconds(encoded) + batcher.wait_s(images)
        if wait_s > self.margin.share * left_s:
            metrics.rejected.labels("deadline").inc()
            raise ServiceError(
                "overloaded", f"an answer would take about {wait_s:.2f} s, the request's deadline is in {left_s:.2f} s"
            )

    def named(
        self, contract: Contract, row: Row, top_k: int, decoded: Decoded, decode_s: float, entry: Entry
    ) -> Result:
        """The engine's answer for one image with the labels of its `top_k` best classes; it is counted, and its times
        are written down in `entry`. Raises internal where it is none.
        """
        started = time.perf_counter()
        if not math.isfinite(float(row.probabilities.sum())):
            raise ServiceError("internal", f"{contract.name} computed values for this image that are not finite")
        best = best_classes(row.probabilities, top_k)
        predictions = tuple(Prediction(i, contract.labels[i], float(row.probabilities[i])) for i in best)
        entry.stage("queue", contract.name, row.began - row.queue_s, row.queue_s)
        entry.stage("infer", contract.name, row.began, row.infer_s)
        entry.stage("postprocess", contract.name, started, time.perf_counter() - started)
        metrics.images.labels(contract.name).inc()
        return Result(predictions, decoded.warnings, None, decode_s, row.queue_s, row.infer_s)
