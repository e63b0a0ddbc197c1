"""Pages of long lists (AIP-158): every page begins where the one before ended, however deep.

A token names the last row seen and the list it belongs to; rows are found by index, never by
counting, so the thousandth page costs what the first does.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from cloud.service.errors import InvalidFields, Violation

DEFAULT_SIZE, MAX_SIZE = 100, 1000


def size(asked: int) -> int:
    """Rows on a page."""
    return min(asked or DEFAULT_SIZE, MAX_SIZE)


def after(token: str, collection: str, *kinds: type[int] | type[str]) -> list[Any] | None:
    """The sort key of the last row of the page before; None for the first page.

    kinds: the types of the key's parts. A token comes from outside, so nothing in it is trusted.

    Raises:
        InvalidFields: the token is not ours, or belongs to another list.
    """
    if not token:
        return None
    try:
        owner, key = json.loads(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        owner, key = None, None
    if owner != collection or not isinstance(key, list) or not _is_key(key, kinds):
        raise InvalidFields([Violation("page_token", "is no token of this list")])
    return key


def _is_key(key: list[Any], kinds: Sequence[type]) -> bool:
    return len(key) == len(kinds) and all(
        type(part) is kind
        and (part.isascii() and part.isprintable() if kind is str else _fits(part))
        for part, kind in zip(key, kinds, strict=True)
    )


def _fits(number: int) -> bool:
    return -(2**63) <= number < 2**63


def token(collection: str, key: Sequence[Any]) -> str:
    """The token of the page after the row with this sort key."""
    text = json.dumps([collection, list(key)], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode()
