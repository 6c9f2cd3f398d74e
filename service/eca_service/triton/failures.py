"""What Triton's failures mean for a request."""

from __future__ import annotations

import grpc
from tritonclient.utils import InferenceServerException

from eca_service.errors import ServiceError

UNAVAILABLE = {"UNAVAILABLE", "CANCELLED"}
PASSING = {"backend_unavailable", "deadline_exceeded", "overloaded"}  # what says nothing of the model


class NotLoaded(ServiceError):
    """A server does not have the version that it was asked about: it may just have been told to unload it."""


class OutOfReach(ServiceError):
    """The file system of a version that is to be loaded does not answer, or is gone."""


def passes(error: BaseException) -> bool:
    """It says that a server or the files cannot be reached, or that it has too much to do or was too late: nothing of
    the model.
    """
    if isinstance(error, (InferenceServerException, grpc.RpcError)):
        error = translated(error, "")
    return isinstance(error, OutOfReach) or (isinstance(error, ServiceError) and error.code in PASSING)


def translated(error: InferenceServerException | grpc.RpcError, model: str) -> ServiceError:
    """What tritonclient or gRPC raised when `model` was asked, as an error of ours."""
    if isinstance(error, InferenceServerException):
        status, text = (error.status() or "").removeprefix("StatusCode."), error.message()
    else:
        status, text = error.code().name, error.details()
    text = text or "no reason given"
    if status == "DEADLINE_EXCEEDED":
        return ServiceError("deadline_exceeded", f"{model} did not answer before the request's deadline")
    if "maximum queue size" in text:
        return ServiceError("overloaded", f"Triton's queue for {model} is full")
    if status in UNAVAILABLE and "model" not in text.lower():
        return ServiceError("backend_unavailable", "Triton Inference Server is not reachable; try again in a moment")
    if status in UNAVAILABLE or "is not ready" in text or "unknown model" in text or status == "NOT_FOUND":
        return NotLoaded("model_not_ready", f"{model} is not loaded in Triton: {text}")
    if "failed to poll" in text:  # it looks at all that is in a model's folder, also at what an editor puts there
        text += "; its log names the file that it cannot read, such as a link that leads nowhere"
    return ServiceError("internal", f"Triton failed on {model}: {text}")
