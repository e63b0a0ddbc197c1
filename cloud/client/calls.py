"""One call to the server: who calls, a request id for what changes something, errors as exceptions.

What `client.py` builds on; it knows no method of the service.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message

from cloud.client.channel import Credential, Tls, open_channel
from cloud.client.errors import of_call

M = TypeVar("M", bound=Message)
Metadata = tuple[tuple[str, str], ...]


class Caller:
    """A channel with what every call on it needs."""

    def __init__(
        self, address: str, credential: Credential, tls: Tls | None, timeout_s: float
    ) -> None:
        self.address = address
        self.channel = open_channel(address, tls, credential)
        self.timeout_s = timeout_s
        self._credential = credential

    def metadata(self) -> Metadata:
        """The metadata of a call made now."""
        found = self._credential() if callable(self._credential) else self._credential
        return (("authorization", f"Bearer {found}"),) if found else ()

    async def call(
        self, method: Any, request: Message, answer: type[M], timeout_s: float | None = None
    ) -> M:
        """Make a unary call of a stub's method.

        Raises:
            CallError: its subclass for the status.
        """
        try:
            found = await method(
                with_id(request), timeout=timeout_s or self.timeout_s, metadata=self.metadata()
            )
        except grpc.aio.AioRpcError as error:
            raise of_call(error, self.address) from None
        assert isinstance(found, answer)
        return found

    async def pages(self, method: Any, request: Any, answer: type[Message]) -> AsyncIterator[Any]:
        """Everything that a List method finds, page by page as it is needed."""
        field = next(f.name for f in answer.DESCRIPTOR.fields if f.is_repeated)
        while True:
            page = await self.call(method, request, answer)
            for each in getattr(page, field):
                yield each
            request.page_token = cast("Any", page).next_page_token
            if not request.page_token:
                return


def with_id(request: Message) -> Message:
    """The request, with a request id where it can have one and has none: then a retry is safe."""
    if "request_id" in request.DESCRIPTOR.fields_by_name and not cast("Any", request).request_id:
        cast("Any", request).request_id = str(uuid.uuid4())
    return request
