"""What the service raises, and the one table from errors to gRPC status.

    ServiceError                    reason                  code
    |-- InvalidFields               INVALID_FIELDS          INVALID_ARGUMENT, with BadRequest
    |-- Unauthenticated             UNAUTHENTICATED         UNAUTHENTICATED
    |-- NotFound                    NOT_FOUND               NOT_FOUND
    |-- AlreadyExists               ALREADY_EXISTS          ALREADY_EXISTS
    |-- Conflict                    CONFLICT                ABORTED
    |-- WrongState                  WRONG_STATE             FAILED_PRECONDITION
    |-- WrongPosition               WRONG_POSITION          OUT_OF_RANGE
    |-- Exhausted                   EXHAUSTED               RESOURCE_EXHAUSTED, with RetryInfo
    |-- Cancelled                   CANCELLED               CANCELLED
    `-- Unavailable                 UNAVAILABLE             UNAVAILABLE, with RetryInfo

Errors of the stages (`protos.errors`), of the database and of the disk have rows of their own in
`_TABLE`. Anything else is a defect: INTERNAL with an incident number, never with its text. Every
status carries `google.rpc.ErrorInfo` with domain `pocketune.dev`.
"""

from __future__ import annotations

import errno
import sqlite3
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from protos.errors import (
    ArtifactError,
    GateError,
    InputError,
    MismatchError,
    PocketuneError,
    TeacherError,
    UnsupportedError,
)

DOMAIN = "pocketune.dev"
DETAILS_KEY = "grpc-status-details-bin"
Code = grpc.StatusCode
_log = structlog.get_logger(__name__)


class ServiceError(Exception):
    """Base of what the service raises on purpose; its text is meant for the caller."""

    code: ClassVar[grpc.StatusCode] = Code.UNKNOWN
    reason: ClassVar[str] = "UNKNOWN"
    retry_after_s: float = 0.0


@dataclass(frozen=True)
class Violation:
    """What is wrong with one field of a request."""

    field: str
    problem: str


class InvalidFields(ServiceError):
    """Fields of the request are missing, malformed or out of range; all of them are named."""

    code, reason = Code.INVALID_ARGUMENT, "INVALID_FIELDS"

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.problem}" for v in violations[:5]))
        self.violations = tuple(violations)


class Unauthenticated(ServiceError):
    """No credentials, or such that nobody vouches for."""

    code, reason = Code.UNAUTHENTICATED, "UNAUTHENTICATED"


class NotFound(ServiceError):
    """No such resource, as far as this caller may know."""

    code, reason = Code.NOT_FOUND, "NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: not found")


class AlreadyExists(ServiceError):
    """A resource of that name is there already."""

    code, reason = Code.ALREADY_EXISTS, "ALREADY_EXISTS"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: exists already")


class Conflict(ServiceError):
    """Somebody else was faster, or another operation is at work on the same user."""

    code, reason = Code.ABORTED, "CONFLICT"


class WrongState(ServiceError):
    """The request is sound, but the resource is not in a state that allows it."""

    code, reason = Code.FAILED_PRECONDITION, "WRONG_STATE"


class WrongPosition(ServiceError):
    """A position beyond what has arrived, or beyond the end of a file."""

    code, reason = Code.OUT_OF_RANGE, "WRONG_POSITION"


class Exhausted(ServiceError):
    """A quota or rate limit of the tenant."""

    code, reason = Code.RESOURCE_EXHAUSTED, "EXHAUSTED"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Cancelled(ServiceError):
    """Somebody asked for the operation to end."""

    code, reason = Code.CANCELLED, "CANCELLED"


class Unavailable(ServiceError):
    """A part that the service needs is away for a while."""

    code, reason = Code.UNAVAILABLE, "UNAVAILABLE"
    retry_after_s = 1.0


_TABLE: tuple[tuple[type[BaseException], grpc.StatusCode, str], ...] = (
    (InputError, Code.INVALID_ARGUMENT, "INPUT"),
    (ArtifactError, Code.DATA_LOSS, "ARTIFACT"),
    (MismatchError, Code.FAILED_PRECONDITION, "MISMATCH"),
    (UnsupportedError, Code.FAILED_PRECONDITION, "UNSUPPORTED"),
    (TeacherError, Code.UNAVAILABLE, "TEACHER"),
    (GateError, Code.FAILED_PRECONDITION, "GATE"),
    (PocketuneError, Code.UNKNOWN, "POCKETUNE"),
)
# gRPC drops a trailer beyond 2 KiB on the wire: the message there is %-escaped, the status base64.
_MESSAGE_BYTES, _FIELD_BYTES, _DETAILS_BYTES = 400, 200, 1200
# Their texts may hold SQL, parameters and paths: the caller gets ours instead.
_AWAY = (OperationalError, InterfaceError, PoolTimeout, ConnectionError, TimeoutError)


def to_status(error: BaseException) -> status_pb2.Status:
    """The status that a caller gets for an error, with its details."""
    if isinstance(error, ServiceError):
        return _status(error.code, error.reason, str(error), _details(error))
    for kind, code, reason in _TABLE:
        if isinstance(error, kind):
            return _status(code, reason, str(error), ())
    if _is_full(error):
        full = Exhausted("no space left on the server's disk", 60.0)
        return _status(full.code, "DISK_FULL", str(full), _details(full))
    if isinstance(error, (*_AWAY, OSError)):
        _log.warning("dependency away", error=type(error).__name__)
        away = Unavailable("the database or the blob store does not answer; try again")
        return to_status(away)
    incident = uuid.uuid4().hex[:12]
    _log.error("internal error", incident=incident, exc_info=error)
    return _status(Code.INTERNAL, "INTERNAL", f"internal error, incident {incident}", ())


def is_transient(error: BaseException) -> bool:
    """Whether trying the same thing again may help."""
    return isinstance(error, TeacherError) or is_away(error)


def is_away(error: BaseException) -> bool:
    """Whether the database or the blob store did not answer."""
    return isinstance(error, (Unavailable, *_AWAY, OSError)) and not _is_full(error)


def _is_full(error: BaseException) -> bool:
    """A disk without room: ours, SQLite's or PostgreSQL's."""
    if isinstance(error, OperationalError):
        full = getattr(error.orig, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        return full or getattr(error.orig, "sqlstate", "") == "53100"
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def fitting(status: status_pb2.Status) -> status_pb2.Status:
    """The status as it fits into the trailers: long texts are cut, the last violations left out."""
    fit = status_pb2.Status(code=status.code, message=_cut(status.message, _MESSAGE_BYTES))
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        if not detail.Unpack(bad):
            fit.details.append(detail)
            continue
        rows = [
            error_details_pb2.BadRequest.FieldViolation(
                field=_cut(row.field, _FIELD_BYTES), description=_cut(row.description, _FIELD_BYTES)
            )
            for row in bad.field_violations
        ]
        room = _DETAILS_BYTES - fit.ByteSize()
        while sum(row.ByteSize() + 4 for row in rows) > room:
            rows.pop()
        left_out = len(bad.field_violations) - len(rows)
        if left_out:
            rows.append(
                error_details_pb2.BadRequest.FieldViolation(description=f"and {left_out} more")
            )
        fit.details.add().Pack(error_details_pb2.BadRequest(field_violations=rows))
    return fit


def _cut(text: str, limit: int) -> str:
    raw = text.encode()
    return text if len(raw) <= limit else raw[: limit - 3].decode(errors="ignore") + "…"


def _details(error: ServiceError) -> list[Message]:
    details: list[Message] = []
    if isinstance(error, InvalidFields):
        rows = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.problem)
            for v in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=rows))
    if error.retry_after_s:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _status(
    code: grpc.StatusCode, reason: str, message: str, details: Sequence[Message]
) -> status_pb2.Status:
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=message)
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN), *details):
        status.details.add().Pack(detail)
    return status
