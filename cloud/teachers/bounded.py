"""The body of an HTTP answer, for no longer and no larger than allowed.

A time-out of the HTTP client begins anew with each piece that arrives, so that a server which sends
one blank now and then would be waited for without end.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any

_MOST_BYTES = 16 * 1024 * 1024


def bounding(timeout_s: float) -> Callable[[Any], None]:
    """A hook for the responses of openai's HTTP client.

    Their bodies end with the client's own ReadTimeout when they are too late or too large.
    """
    import openai

    # httpx, or httpx2: that is up to the version of openai
    client = openai.DefaultHttpxClient.__mro__[1]
    http: Any = importlib.import_module(client.__module__.partition(".")[0])

    class Bounded(http.SyncByteStream):
        def __init__(self, body: Any) -> None:
            self._body = body

        def __iter__(self) -> Iterator[bytes]:
            ends, size = time.monotonic() + timeout_s, 0
            for piece in self._body:
                size += len(piece)
                if time.monotonic() > ends or size > _MOST_BYTES:
                    raise http.ReadTimeout(f"no end after {timeout_s:g} s or {size:,} bytes")
                yield piece

        def close(self) -> None:
            self._body.close()

    def bound(response: Any) -> None:
        response.stream = Bounded(response.stream)

    return bound
