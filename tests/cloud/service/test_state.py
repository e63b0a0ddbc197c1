"""The database as services touch it."""

from __future__ import annotations

import asyncio

from sqlalchemy import Connection, func, insert, select

from cloud.service.state import Database
from cloud.service.tables import User


def add_users(connection: Connection, first: int, last: int) -> None:
    rows = [
        {"uid": f"{number}", "tenant": "local", "user_id": f"u{number}", "create_time": 1,
         "purpose": "test", "retention_days": 1, "third_party": False, "consent_version": 1,
         "consent_time": 1, "erasing": False}
        for number in range(first, last)
    ]  # fmt: skip
    connection.execute(insert(User), rows)


def test_a_read_that_stops_early_or_fails_hides_no_later_write(database: Database):
    def first(connection: Connection) -> str:
        for row in connection.execute(select(User.uid).order_by(User.uid)):
            return row.uid
        raise AssertionError

    def fail(connection: Connection) -> str:
        raise ValueError(first(connection))

    def count(connection: Connection) -> int:
        return connection.execute(select(func.count()).select_from(User)).scalar_one()

    async def main() -> None:
        await database.write(lambda connection: add_users(connection, 0, 50))
        assert await database.read(first) == "0"
        await database.write(lambda connection: add_users(connection, 50, 51))
        assert await database.read(count) == 51
        try:
            await database.read(fail)
        except ValueError:
            await database.write(lambda connection: add_users(connection, 51, 52))
            assert await database.read(count) == 52

    asyncio.run(main())
