"""What a server or a worker is made of, opened once.

In: settings. Out: `Parts`: database, vault, queue and audit log; every service and stage gets them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass

from cloud.service import jobs
from cloud.service.audit import AuditLog, open_audit
from cloud.service.settings import Settings
from cloud.service.state import Database
from cloud.service.vault import Vault, open_vault


@dataclass(frozen=True)
class Parts:
    """What services and workers are made of."""

    settings: Settings
    database: Database
    vault: Vault
    queue: jobs.JobQueue
    audit: AuditLog


@contextlib.contextmanager
def open_parts(settings: Settings) -> Generator[Parts]:
    """Open database, blobs, keys and audit log, and bring the tables to this version."""
    database = Database(settings.resolved_database_url, settings.max_call_s)
    database.migrate()
    jobs.make_tables(database)
    queue = jobs.JobQueue(database)
    try:
        yield Parts(settings, database, open_vault(settings), queue, open_audit(settings))
    finally:
        queue.close()
        database.close()
