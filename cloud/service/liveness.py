"""Which workers are alive: each counts up a beat, and the others watch it by their own clocks.

No clock is compared with another machine's, so a clock that jumps declares nobody dead. A worker
whose row is gone has been declared dead by another one, and must end: its jobs are somebody else's.
"""

from __future__ import annotations

import socket
import time

from sqlalchemy import Connection, delete, insert, select, update

from cloud.service.state import Database, now
from cloud.service.tables import Worker


class Roll:
    """The list of workers, as one of them keeps it."""

    def __init__(self, executor_id: str, timeout_s: float) -> None:
        self._executor_id = executor_id
        self._mine = Worker.executor_id == executor_id
        self._timeout_s = timeout_s
        self._seen: dict[str, tuple[int, float]] = {}
        self._looked = time.monotonic()

    def sign(self, database: Database) -> None:
        """Enter this worker; before it takes its first job."""
        row = {"executor_id": self._executor_id, "host": socket.gethostname(), "beat": 0}
        with database.transaction() as connection:
            connection.execute(insert(Worker).values(**row, start_time=now()))

    def strike(self, database: Database) -> None:
        """Remove this worker: the others put back at once what it held."""
        with database.transaction() as connection:
            connection.execute(delete(Worker).where(self._mine))

    def call(self, database: Database) -> set[str] | None:
        """Beat once and tell who lives; None: this worker has been declared dead."""
        if time.monotonic() - self._looked > self._timeout_s / 2:
            self._seen.clear()  # the database was away, for the others too: nobody was silent
        with database.transaction() as connection:
            beat = update(Worker).where(self._mine).values(beat=Worker.beat + 1)
            if connection.execute(beat).rowcount != 1:
                return None
            living = self._living(connection)
        self._looked = time.monotonic()
        return living

    def _living(self, connection: Connection) -> set[str]:
        """Workers whose beat moves; the rows of the others are removed."""
        moment = time.monotonic()
        living = {self._executor_id}
        for worker, beat in connection.execute(select(Worker.executor_id, Worker.beat)).all():
            if worker == self._executor_id:
                continue
            last, since = self._seen.get(worker, (None, moment))
            if beat != last:
                since = moment
                self._seen[worker] = (beat, moment)
            if moment - since <= self._timeout_s:
                living.add(worker)
            else:
                silent = (Worker.executor_id == worker) & (Worker.beat == beat)
                connection.execute(delete(Worker).where(silent))
        return living
