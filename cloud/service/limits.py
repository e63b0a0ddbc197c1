"""What one tenant may take: calls a second, open operations, bytes.

In: settings. Out: nothing, or `Exhausted`, whose RetryInfo says when to come back. Calls are
counted in this process: with several servers a tenant may reach one of them at this rate each.
Operations and bytes are counted in the database, in the transaction that begins an operation.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from sqlalchemy import Connection, func, select

from cloud.service.errors import Exhausted
from cloud.service.settings import Settings
from cloud.service.tables import Artifact, Operation, User

_MAX_TENANTS = 10_000
_RETRY_OPERATION_S = 10.0
_RETRY_BYTES_S = 3600.0
_GIB = 1 << 30


class CallRate:
    """A bucket of tokens for each tenant: filled at the rate, holds two seconds of it."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._most = max(1.0, 2 * per_s)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, tenant: str) -> None:
        """Count one call.

        Raises:
            Exhausted: the tenant calls faster than it may.
        """
        if not self._per_s:
            return
        moment = self._clock()
        tokens, then = self._buckets.get(tenant, (self._most, moment))
        tokens = min(self._most, tokens + (moment - then) * self._per_s)
        left = tokens if tokens < 1 else tokens - 1
        self._buckets[tenant] = (left, moment)
        self._buckets.move_to_end(tenant)
        if len(self._buckets) > _MAX_TENANTS:  # whoever was away longest has a full bucket anyway
            self._buckets.popitem(last=False)
        if tokens < 1:
            message = f"more than {self._per_s:g} calls a second"
            raise Exhausted(message, (1 - tokens) / self._per_s)


def check_quotas(connection: Connection, tenant: str, settings: Settings) -> None:
    """Refuse a new operation of a tenant that has used up what it may have.

    Raises:
        Exhausted: too many open operations, or too many bytes stored.
    """
    is_open = (Operation.tenant == tenant) & Operation.end_time.is_(None)
    count = connection.execute(select(func.count()).where(is_open)).scalar_one()
    if count >= settings.tenant_open_operations:
        message = f"{count} operations are open, at most {settings.tenant_open_operations} may be"
        raise Exhausted(message, _RETRY_OPERATION_S)
    if not settings.tenant_gib:
        return
    used = connection.execute(
        select(func.coalesce(func.sum(Artifact.size_bytes), 0))
        .join(User, User.uid == Artifact.user_uid)
        .where(User.tenant == tenant)
    ).scalar_one()
    if used >= settings.tenant_gib * _GIB:
        message = f"{used / _GIB:.2f} GiB are stored, at most {settings.tenant_gib:g} may be"
        raise Exhausted(f"{message}; delete bundles, adapters, profiles or users", _RETRY_BYTES_S)
