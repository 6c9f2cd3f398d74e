"""Memory shared with the one Triton of this host: agreed on with it, given up, and agreed on anew after it died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection

import grpc
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from eca_service import leftovers
from eca_service.region import Region
from eca_service.triton.failures import passes

logger = logging.getLogger(__name__)
CONTROL_S = 3.0  # for an answer that needs no work


class Sharing:
    """`region` is what Triton reads too; None where there is none, or not yet, and tensors travel in messages."""

    def __init__(self, wanted: bool) -> None:
        self.region: Region | None = None
        self._wanted = wanted
        self._turn = asyncio.Lock()

    async def begin(self, client: triton.InferenceServerClient) -> None:
        """Has the server map a region of ours, where it has none, and forget those of gateways that are gone."""
        async with self._turn:
            if self.region or not self._wanted:
                return
            try:
                leftovers.remove("gateway")
                status = await client.get_system_shared_memory_status(client_timeout=CONTROL_S)
                for name in filter(leftovers.abandoned, status.regions):
                    await _unregister(client, name)
                region = Region()
                try:
                    await client.register_system_shared_memory(
                        region.name, f"/{region.name}", region.size, client_timeout=CONTROL_S
                    )
                finally:
                    region.unlink()
            except (OSError, InferenceServerException, grpc.RpcError) as error:
                if passes(error):
                    return
                logger.warning("tensors travel to Triton in messages, not in shared memory: %s", error)
                self._wanted = False
                return
            self.region = region

    async def end(self, clients: Collection[triton.InferenceServerClient]) -> None:
        """Has the servers forget the region, which they refuse while they read there."""
        if self.region:
            for client in list(clients):
                await _unregister(client, self.region.name)


async def _unregister(client: triton.InferenceServerClient, name: str) -> None:
    with contextlib.suppress(InferenceServerException, grpc.RpcError):
        await client.unregister_system_shared_memory(name, client_timeout=CONTROL_S)
