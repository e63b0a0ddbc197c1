"""The Python client of the service: `AsyncClient`, and `Client` for code without an event loop.

Both do what the generated stubs do, and add what every caller would write otherwise: retries, a
request id for each change so that a retry is safe, uploads and downloads that go on after a break,
waiting for operations with progress, and errors as exceptions with their details. What is not here
is reached through the stubs themselves, on `AsyncClient.channel`.
"""

from cloud.client.channel import Tls
from cloud.client.client import AsyncClient
from cloud.client.errors import (
    AlreadyExists,
    CallError,
    Cancelled,
    Conflict,
    DataLoss,
    Exhausted,
    InvalidRequest,
    NotFound,
    TimedOut,
    Unauthenticated,
    Unreachable,
    Unsupported,
    Violation,
    WrongPosition,
    WrongState,
)
from cloud.client.operation import Operation
from cloud.client.sync import Client

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "CallError",
    "Cancelled",
    "Client",
    "Conflict",
    "DataLoss",
    "Exhausted",
    "InvalidRequest",
    "NotFound",
    "Operation",
    "TimedOut",
    "Tls",
    "Unauthenticated",
    "Unreachable",
    "Unsupported",
    "Violation",
    "WrongPosition",
    "WrongState",
]
