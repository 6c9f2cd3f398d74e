"""A small client of the service, blocking or in an event loop, over HTTP or gRPC.

    with Client("http://127.0.0.1:8080") as client:
        print(client.classify("cat.jpg").best.label)

An address `http://`, `https://`, `grpc://` or `grpcs://` names the protocol; gRPC classifies and tells readiness.
Calls that fail for a moment are made again, as the service asks and for as long as the deadline allows: all but one
are idempotent. What stays failed is a ClientError.
"""

from eca_service.client.answers import Classification, Crop, Explanation, Model, Overlay, Prediction
from eca_service.client.blocking import Client
from eca_service.client.calls import Image
from eca_service.client.failures import ClientError, Retry
from eca_service.client.files import FileResult
from eca_service.client.looping import AsyncClient

__all__ = [
    "AsyncClient",
    "Classification",
    "Client",
    "ClientError",
    "Crop",
    "Explanation",
    "FileResult",
    "Image",
    "Model",
    "Overlay",
    "Prediction",
    "Retry",
]
