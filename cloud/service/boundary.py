"""The boundary of every RPC: who calls, whether the request is sound, how long it may take, and
what an error looks like outside.

One interceptor for all methods. Inside it a service raises what it likes; outside there is a status
with details (`errors.py`), one log line and one row in the metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from prometheus_client import Counter, Histogram

from cloud.service import rules
from cloud.service.auth import Authenticator, principal
from cloud.service.errors import (
    DETAILS_KEY,
    InvalidFields,
    Unavailable,
    Violation,
    WrongState,
    fitting,
    to_status,
)
from cloud.service.limits import CallRate
from cloud.service.settings import Settings

CALLS = Counter("pocketune_calls_total", "RPCs by method and status.", ["method", "code"])
SECONDS = Histogram("pocketune_call_seconds", "Duration of RPCs.", ["method"])
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_ABORT_S = 2.0
_OPEN = ("/grpc.health.", "/grpc.reflection.")
_log = structlog.get_logger("pocketune.calls")
Decode = Callable[[bytes], Message]
Handler = Any  # grpc.RpcMethodHandler, which has no type of its own
Context = grpc.aio.ServicerContext[Any, Any]


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps each method once and remembers it."""

    def __init__(self, authenticator: Authenticator, settings: Settings) -> None:
        self._authenticator = authenticator
        self._settings = settings
        self._rate = CallRate(settings.tenant_calls_per_s)
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = str(handler_call_details.method)
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return handler
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def _wrap(self, method: str, handler: Handler) -> Handler:
        make = _makers[(handler.request_streaming, handler.response_streaming)]
        behavior = (
            handler.unary_unary or handler.unary_stream
            or handler.stream_unary or handler.stream_stream
        )  # fmt: skip
        wrap = self._streaming if handler.response_streaming else self._single
        if handler.request_streaming:
            behavior = self._checked_stream(behavior, handler.request_deserializer)
        else:
            behavior = _checked(behavior, handler.request_deserializer)
        limit_s = (
            self._settings.max_stream_s
            if handler.request_streaming or handler.response_streaming
            else self._settings.max_call_s
        )
        if method.startswith(_OPEN):  # whoever watches the health does so for ever
            limit_s = math.inf
        # No deserializer: gRPC would answer INTERNAL where it fails, and log a traceback.
        return make(
            wrap(method, behavior, limit_s),
            response_serializer=_serializer(handler.response_serializer),
        )

    def _single(self, method: str, behavior: Any, limit_s: float) -> Any:
        """One answer."""

        async def call(request: Any, context: Context) -> Any:
            started = time.monotonic()
            code = "OK"
            try:
                await self._identify(method, context)
                async with asyncio.timeout(_deadline(context, limit_s)):
                    return await behavior(request, context)
            except (asyncio.CancelledError, grpc.aio.AbortError, grpc.aio.UsageError):
                code = "CANCELLED"
                raise
            except Exception as error:  # the one place that turns errors into statuses
                status = to_status(_ours(error))
                code = _CODES[status.code].name
                await _abort(context, status)
            finally:
                _record(method, code, started)

        return call

    def _streaming(self, method: str, behavior: Any, limit_s: float) -> Any:
        """Many answers. They are written here, so that the deadline also ends a write that waits
        for a client who does not read.
        """

        async def call(request: Any, context: Context) -> None:
            started = time.monotonic()
            code = "OK"
            try:
                await self._identify(method, context)
                async with asyncio.timeout(_deadline(context, limit_s)):
                    async for answer in behavior(request, context):
                        await context.write(answer)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                code = "CANCELLED"
                raise
            except Exception as error:  # the one place that turns errors into statuses
                status = to_status(_ours(error))
                code = _CODES[status.code].name
                await _abort(context, status)
            finally:
                _record(method, code, started)

        return call

    async def _identify(self, method: str, context: Context) -> None:
        if method.startswith(_OPEN):
            return
        metadata = dict(context.invocation_metadata() or ())
        caller = await self._authenticator.authenticate(metadata)
        self._rate.take(caller.tenant)
        principal.set(caller)

    def _checked_stream(self, behavior: Any, decode: Decode) -> Any:
        """Each message is checked as it arrives, and must arrive within `stall_s`."""

        async def messages(requests: AsyncIterator[bytes]) -> AsyncIterator[Message]:
            while True:
                try:
                    async with asyncio.timeout(self._settings.stall_s):
                        raw = await anext(requests)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    stalled = f"nothing came for {self._settings.stall_s:g} s in mid-stream"
                    raise WrongState(stalled) from None
                yield _sound(decode, raw)

        def call(requests: AsyncIterator[bytes], context: Context) -> Any:
            return behavior(messages(aiter(requests)), context)

        return call


_makers: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _checked(behavior: Any, decode: Decode) -> Any:
    def call(raw: bytes, context: Context) -> Any:
        return behavior(_sound(decode, raw), context)

    return call


def _sound(decode: Decode, raw: bytes) -> Message:
    """The request in these bytes.

    Raises:
        InvalidFields: they are no message of its type, or it breaks a rule.
    """
    try:
        request = decode(raw)
    except DecodeError:
        raise InvalidFields([Violation("", "the bytes are no message of this type")]) from None
    rules.check(request)
    return request


def _serializer(serialize: Callable[[Message], bytes]) -> Callable[[Message | bytes], bytes]:
    """Messages become bytes; what a service has serialized itself is sent as it is."""
    return lambda answer: answer if isinstance(answer, bytes) else serialize(answer)


def _deadline(context: Context, limit_s: float) -> float:
    left = cast("float | None", context.time_remaining())
    return limit_s if left is None else min(left, limit_s)


def _ours(error: Exception) -> Exception:
    """A deadline that passed inside us is the service being slow, not the caller being wrong."""
    return Unavailable("the call took too long") if isinstance(error, TimeoutError) else error


async def _abort(context: Context, status: status_pb2.Status) -> None:
    fit = fitting(status)
    details = ((DETAILS_KEY, fit.SerializeToString()),)
    # A client that does not read takes no status either: it is there when it reads on.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_ABORT_S):
            await context.abort(_CODES[fit.code], fit.message, details)


def _record(method: str, code: str, started: float) -> None:
    if method.startswith(_OPEN):
        return
    seconds = time.monotonic() - started
    CALLS.labels(method, code).inc()
    SECONDS.labels(method).observe(seconds)
    _log.info("call", method=method, code=code, ms=round(seconds * 1000, 1))
