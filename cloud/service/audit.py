"""The audit log: what was changed, by whom and about whom, as salted hashes only.

In: a caller, a method and the name of a resource. Out: a row of `audit`, written in the transaction
of the change itself: no change without its row and no row without its change. Who holds the salt
and a name can look for its rows; from the rows alone nobody learns a name.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, insert

from cloud.service import crypto
from cloud.service.auth import Principal
from cloud.service.settings import Settings
from cloud.service.state import new_uid, now
from cloud.service.tables import Audit


class AuditLog:
    """Writes rows. key: the server's, see `server_key`."""

    def __init__(self, key: bytes) -> None:
        self._salt = crypto.derive(key, b"pocketune audit")

    def record(
        self,
        connection: Connection,
        caller: Principal,
        method: str,
        name: str,
        outcome: str = "OK",
    ) -> None:
        """Write what `caller` did to the resource `name`."""
        connection.execute(
            insert(Audit).values(
                uid=new_uid(),
                create_time=now(),
                method=method,
                caller_hash=self.hash_of(caller.tenant, caller.subject),
                subject_hash=self.hash_of(caller.tenant, name),
                outcome=outcome,
            )
        )

    def hash_of(self, tenant: str, text: str) -> str:
        """The salted hash under which a caller or a resource stands in the log."""
        return crypto.keyed_digest(self._salt, f"{tenant}\n{text}".encode())


def open_audit(settings: Settings) -> AuditLog:
    """The log of these settings."""
    return AuditLog(server_key(settings))


def server_key(settings: Settings) -> bytes:
    """The key behind audit hashes and receipts; made where the default is used.

    Raises:
        InputError: the file is missing, or others may read it.
    """
    if settings.server_key_file is None:
        crypto.make_root_key(_path(settings))
    return crypto.read_root_key(_path(settings))


def existing_server_key(settings: Settings) -> bytes:
    """The same, but never made: for who asks what a server has signed with.

    Raises:
        InputError: the file is missing, or others may read it.
    """
    return crypto.read_root_key(_path(settings))


def _path(settings: Settings) -> Path:
    return settings.server_key_file or settings.data_dir / "server.key"
