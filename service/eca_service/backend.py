"""The way to Triton; the only module that knows tritonclient."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import numpy as np
import tritonclient.grpc.aio as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from eca_service.contract import INPUT, PROBABILITIES, Contract
from eca_service.errors import ServiceError

MAX_MESSAGE_BYTES = 512 << 20
OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
)
UNAVAILABLE = {"StatusCode.UNAVAILABLE", "StatusCode.CANCELLED"}


class Triton:
    """One channel to a Triton Inference Server at host:port."""

    def __init__(self, url: str) -> None:
        self._client = triton.InferenceServerClient(url, channel_args=list(OPTIONS))

    async def close(self) -> None:
        """Closes the channel."""
        await self._client.close()

    async def load(self, contract: Contract) -> None:
        """Loads the model and compares Triton's own metadata with the contract; ServiceError where they differ."""
        try:
            await self._client.load_model(contract.name)
            metadata = await self._client.get_model_metadata(contract.name, str(contract.version), client_timeout=10)
        except (InferenceServerException, grpc.RpcError) as error:
            raise _translated(error, contract.name) from None
        crop = contract.preprocessing.crop
        found = {t.name: (t.datatype, list(t.shape)[1:]) for t in (*metadata.inputs, *metadata.outputs)}
        wanted = {INPUT: ("UINT8", [crop, crop, 3]), PROBABILITIES: ("FP32", [contract.classes])}
        for name, tensor in wanted.items():
            if found.get(name) != tensor:
                raise ServiceError(
                    "model_not_ready", f"{contract.name}: Triton has {name} as {found.get(name)}, the contract {tensor}"
                )

    async def infer(self, images: NDArray[np.uint8], contract: Contract, deadline_s: float) -> NDArray[np.float32]:
        """Probabilities float32 [N, K] for uint8 [N, H, W, 3]; ServiceError where Triton cannot answer in time."""
        tensor = triton.InferInput(INPUT, list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images)
        try:
            answer = await self._client.infer(
                contract.name,
                [tensor],
                model_version=str(contract.version),
                outputs=[triton.InferRequestedOutput(PROBABILITIES)],
                client_timeout=max(0.001, deadline_s),
            )
        except (InferenceServerException, grpc.RpcError) as error:
            raise _translated(error, contract.name) from None
        probabilities: NDArray[np.float32] = answer.as_numpy(PROBABILITIES)
        if probabilities.shape != (len(images), contract.classes):
            raise ServiceError("internal", f"Triton answered {probabilities.shape} for {len(images)} images")
        return probabilities


def _translated(error: Exception, model: str) -> ServiceError:
    status = error.status() if isinstance(error, InferenceServerException) else ""
    text = (error.message() if isinstance(error, InferenceServerException) else str(error)) or "no reason given"
    if status == "StatusCode.DEADLINE_EXCEEDED":
        return ServiceError("deadline_exceeded", f"{model} did not answer before the request's deadline")
    if status in UNAVAILABLE and "model" not in text.lower():
        return ServiceError("backend_unavailable", "Triton Inference Server is not reachable; try again in a moment")
    if status in UNAVAILABLE or "is not ready" in text or "unknown model" in text or status == "StatusCode.NOT_FOUND":
        return ServiceError("model_not_ready", f"{model} is not loaded in Triton: {text}")
    return ServiceError("internal", f"Triton failed on {model}: {text}")
