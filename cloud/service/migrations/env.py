"""Alembic's entry point: runs the migrations on the connection that `Database.migrate` gives."""

from __future__ import annotations

from alembic import context

from cloud.service.tables import Table

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Table.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    # DBOS keeps its own tables, on SQLite in the same file.
    include_name=lambda name, kind, _: kind != "table" or name in Table.metadata.tables,
)
with context.begin_transaction():
    context.run_migrations()
