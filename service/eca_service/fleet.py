"""Which Tritons there are, what each has loaded, and which of them get images."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Collection
from pathlib import Path

import grpc
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from eca_service import disk
from eca_service.cancellation import unless_cut_off
from eca_service.contract import Contract
from eca_service.errors import ServiceError
from eca_service.integrity import damage
from eca_service.resolver import Resolver
from eca_service.sharing import CONTROL_S, Sharing
from eca_service.triton.failures import OutOfReach, passes, translated
from eca_service.triton.model import batches_at_once, config, present, require_as_agreed

logger = logging.getLogger(__name__)
MAX_MESSAGE_BYTES = 512 << 20
PROBE_S = 0.5
HOPELESS_S = 30.0
LOAD_S = 600.0
OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # while calls wait, a server that was cut off without a word is noticed in three seconds
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.enable_http_proxy", 0),  # http_proxy is for what is outside
]
# Before, a call that is cancelled as it is answered can end the server:
# https://github.com/triton-inference-server/server/issues/8034
CANCELS_SAFELY = (2, 58)


class Fleet:
    """All servers that `urls` stand for now, with a channel to each for control.

    gRPC's own resolver asks for addresses again only when a connection breaks, and so would not find a server that was
    added: they are looked up here. `serving` are the addresses that get images: of those servers that have all models
    which any has.
    """

    def __init__(self, urls: str, sharing: Sharing) -> None:
        self.serving: frozenset[str] = frozenset()
        self._resolver = Resolver(urls)
        self._sharing = sharing
        self._clients: dict[str, triton.InferenceServerClient] = {}
        self._loaded: dict[str, set[str]] = {}  # names of the models that each address has
        self._engines: dict[tuple[str, str, int], str] = {}  # SHA-256 by address and version, as far as known here
        self._agreed: dict[str, Contract] = {}  # by model, that of the version loaded last
        self._failures: dict[str, str] = {}
        self._again: dict[str, float] = {}  # when one that cannot have a model is worth a try, by the loop's clock
        self._cancels: set[str] = set()  # addresses of servers whose calls may be cancelled
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def cancels(self) -> bool:
        """Whether calls to all that serve may be cancelled."""
        return self.serving <= self._cancels

    async def close(self) -> None:
        """Closes the channels."""
        for task in self._closing:
            task.cancel()
        await self._sharing.end(self._clients.values())
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def look(self) -> bool:
        """Asks which servers there are now; True where one that gets no images yet answers, and so can be loaded.

        Those that have left get nothing more.
        """
        addresses = await self._resolver.addresses()
        for address in addresses - self._clients.keys():
            self._clients[address] = triton.InferenceServerClient(address, channel_args=OPTIONS)
        for address in self._clients.keys() - addresses:
            self._loaded.pop(address, None)
            task = asyncio.create_task(self._clients.pop(address).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._choose()
        now = asyncio.get_running_loop().time()
        idle = [a for a in self._clients.keys() - self.serving if now >= self._again.get(a, 0)]
        return any(await asyncio.gather(*map(self._answers, idle)))

    async def load(self, contract: Contract, home: Path, versions: Collection[int]) -> int:
        """Has those of `versions` that are there, the contract's among them, loaded in every server that lacks one.

        `home` has their folders and config.pbtxt.

        Returns how many batches the servers run at once. Raises ServiceError where none has the version, or one that
        serves cannot have it, or has another model of that name. Whoever else fails gets no images until it succeeds.
        """
        clients = await self._known()
        outcomes = await asyncio.gather(
            *(unless_cut_off(self._load(address, contract, home, versions)) for address in clients),
            return_exceptions=True,
        )
        slots = {address: had for address, had in zip(clients, outcomes, strict=True) if isinstance(had, int)}
        failures = {a: error for a, error in zip(clients, outcomes, strict=True) if isinstance(error, BaseException)}
        serious = [error for address, error in failures.items() if not passes(error) and address in self.serving]
        if serious or not slots:
            raise (serious or sorted(failures.values(), key=passes))[0]
        for address, error in failures.items():
            self._loaded.pop(address, None)
            if self._failures.get(address) != str(error):
                logger.warning("the Triton at %s gets no images: %s", address, error)
            self._failures[address] = str(error)
            self._again[address] = 0 if passes(error) else asyncio.get_running_loop().time() + HOPELESS_S
        self._agreed[contract.name] = contract
        for address in slots:
            self._loaded.setdefault(address, set()).add(contract.name)
        self._choose()
        return sum(slots.values())

    async def keep(self, home: Path, versions: Collection[int]) -> None:
        """Has every server unload all versions of the model in `home` but those of these that are there: where none is,
        the model. Where that fails, the log says so.
        """
        try:
            kept = await disk.call(present, home, versions)
            wanted = await disk.call(config, home, kept, self._agreed.get(home.name)) if kept else None
        except (ServiceError, OSError) as error:
            logger.warning("Triton keeps what %s no longer needs: %s", home.name, error)
            return
        for client in list(self._clients.values()):
            try:
                if wanted:
                    await unless_cut_off(client.load_model(home.name, config=wanted, client_timeout=LOAD_S))
                else:
                    await unless_cut_off(client.unload_model(home.name, client_timeout=LOAD_S))
            except (InferenceServerException, grpc.RpcError, ServiceError) as error:
                logger.warning("Triton keeps what %s no longer needs: %s", home.name, error)
        if not kept:
            for names in self._loaded.values():
                names.discard(home.name)

    async def held(self, name: str) -> set[int]:
        """The versions of a model that the servers which answer have ready now."""
        clients = (await self._known()).values()
        asked = [client.get_model_repository_index(client_timeout=CONTROL_S) for client in clients]
        answers = await asyncio.gather(*map(unless_cut_off, asked), return_exceptions=True)
        models = [one for index in answers if not isinstance(index, BaseException) for one in index.models]
        return {int(one.version) for one in models if (one.name, one.state) == (name, "READY")}

    async def _known(self) -> dict[str, triton.InferenceServerClient]:
        if not self._clients:
            await self.look()
        if not self._clients:
            raise ServiceError("backend_unavailable", f"no address was found for {', '.join(self._resolver.urls)}")
        return dict(self._clients)

    async def _answers(self, address: str) -> bool:
        client = self._clients[address]
        try:
            if not await client.is_server_live(client_timeout=PROBE_S):
                return False
            await self._look_at(address, client, PROBE_S)
        except (InferenceServerException, grpc.RpcError):
            return False
        return True

    async def _look_at(self, address: str, client: triton.InferenceServerClient, timeout_s: float) -> None:
        """Asks which version it is: one may come in the place of another."""
        version = (await client.get_server_metadata(client_timeout=timeout_s)).version
        numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
        (self._cancels.add if numbers >= CANCELS_SAFELY else self._cancels.discard)(address)

    def _choose(self) -> None:
        """Who is to serve; where nobody would be left, it stays as it was."""
        names = set().union(*self._loaded.values())
        serving = frozenset(address for address, held in self._loaded.items() if held >= names)
        for address in serving:
            self._failures.pop(address, None)
        if serving and serving != self.serving:
            logger.info("images go to the Tritons at %s", ", ".join(sorted(serving)))
            self.serving = serving

    async def _load(self, address: str, contract: Contract, home: Path, versions: Collection[int]) -> int:
        client, name, version = self._clients[address], contract.name, str(contract.version)
        had = self._engines.setdefault((address, name, contract.version), contract.engine_sha256)
        other = had != contract.engine_sha256  # of a version whose number was given away anew
        await self._sharing.begin(client)
        try:
            lacking = {
                each
                for each in versions
                if other or not await client.is_model_ready(name, str(each), client_timeout=CONTROL_S)
            }
            if lacking and (there := await _loadable(contract, home, versions)) & lacking:
                await client.load_model(
                    name, config=await disk.call(config, home, there, contract), client_timeout=LOAD_S
                )
                self._engines[address, name, contract.version] = contract.engine_sha256
            metadata = await client.get_model_metadata(name, version, client_timeout=CONTROL_S)
            answer = await client.get_model_config(name, version, client_timeout=CONTROL_S)
            await self._look_at(address, client, CONTROL_S)
        except (InferenceServerException, grpc.RpcError) as error:
            raise translated(error, name) from None
        except OSError as error:  # its file system does not answer, or is gone
            raise OutOfReach("model_not_ready", f"{home}: {error.strerror}") from None
        require_as_agreed(contract, metadata)
        return batches_at_once(answer.config)


async def _loadable(contract: Contract, home: Path, versions: Collection[int]) -> set[int]:
    """Those of `versions` that are there. Raises ServiceError where the contract's own is not what the build wrote."""
    if reason := await disk.call(damage, contract, home / str(contract.version), patience_s=LOAD_S):
        raise ServiceError("model_not_ready", reason)
    return await disk.call(present, home, versions)
