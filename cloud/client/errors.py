"""What a call can end with, one class for each gRPC status that the service uses.

    CallError                 any other status
    |-- InvalidRequest        INVALID_ARGUMENT      `violations` names the fields
    |-- Unauthenticated       UNAUTHENTICATED
    |-- NotFound              NOT_FOUND             or another tenant's
    |-- AlreadyExists         ALREADY_EXISTS
    |-- Conflict              ABORTED               another operation is at work on the user
    |-- WrongState            FAILED_PRECONDITION
    |-- WrongPosition         OUT_OF_RANGE
    |-- Exhausted             RESOURCE_EXHAUSTED    a quota; try again after `retry_after_s`
    |-- Cancelled             CANCELLED
    |-- DataLoss              DATA_LOSS             also: what arrived is not what was sent
    |-- TimedOut              DEADLINE_EXCEEDED
    |-- Unsupported           UNIMPLEMENTED         the server is older than this client
    `-- Unreachable           UNAVAILABLE           after all retries

An operation that failed raises the same classes: its status is the service's word, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2, status_pb2

from protos.errors import PocketuneError

_DETAILS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True)
class Violation:
    """What is wrong with one field of a request."""

    field: str
    problem: str


class CallError(PocketuneError):
    """The service refused, failed or could not be reached.

    reason: the service's own short word, such as `CONFLICT`; empty where the network failed.
    retry_after_s: when it makes sense to try again; 0 where that was not said.
    """

    exit_code = 8

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        violations: Iterable[Violation] = (),
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s


class InvalidRequest(CallError):
    """Fields of the request are missing, malformed or out of range."""


class Unauthenticated(CallError):
    """No credential was sent, or one that the server does not take."""


class NotFound(CallError):
    """There is no such resource, or it is another tenant's."""


class AlreadyExists(CallError):
    """A resource of that name is there already."""


class Conflict(CallError):
    """Another operation is at work on the same user, or somebody else was faster."""


class WrongState(CallError):
    """The request is sound, but the resource is not in a state that allows it."""


class WrongPosition(CallError):
    """A position beyond the end of an upload or a file."""


class Exhausted(CallError):
    """A quota or rate limit of the tenant, or the server's disk."""


class Cancelled(CallError):
    """Somebody cancelled it."""


class DataLoss(CallError):
    """What is stored, or what arrived, is not what it should be."""


class TimedOut(CallError):
    """No answer within the deadline."""


class Unsupported(CallError):
    """The server does not have this method."""


class Unreachable(CallError):
    """No server answers, or a part that it needs is away."""


_Code = grpc.StatusCode
_BY_CODE: dict[grpc.StatusCode, type[CallError]] = {
    _Code.INVALID_ARGUMENT: InvalidRequest,
    _Code.UNAUTHENTICATED: Unauthenticated,
    _Code.NOT_FOUND: NotFound,
    _Code.ALREADY_EXISTS: AlreadyExists,
    _Code.ABORTED: Conflict,
    _Code.FAILED_PRECONDITION: WrongState,
    _Code.OUT_OF_RANGE: WrongPosition,
    _Code.RESOURCE_EXHAUSTED: Exhausted,
    _Code.CANCELLED: Cancelled,
    _Code.DATA_LOSS: DataLoss,
    _Code.DEADLINE_EXCEEDED: TimedOut,
    _Code.UNIMPLEMENTED: Unsupported,
    _Code.UNAVAILABLE: Unreachable,
}


def of_call(error: grpc.aio.AioRpcError, address: str) -> CallError:
    """The exception for a call that failed; the address is named where nobody answered."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return of_status(status_pb2.Status.FromString(value))
    code = error.code()
    text = error.details() or code.name
    if code is grpc.StatusCode.UNAVAILABLE:
        text = f"{address}: no server answers ({text}); is `pocketune serve` running there?"
    return _BY_CODE.get(code, CallError)(text, code)


def of_status(status: status_pb2.Status) -> CallError:
    """The exception for a status, such as that of a failed operation."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info, bad, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    for detail in status.details:
        for message in (info, bad, retry):
            detail.Unpack(message)
    violations = [Violation(found.field, found.description) for found in bad.field_violations]
    after_s = retry.retry_delay.ToTimedelta().total_seconds()
    kind = _BY_CODE.get(code, CallError)
    return kind(status.message or code.name, code, info.reason, violations, after_s)
