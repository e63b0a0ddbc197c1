"""Alembic migrations of the tables; run by `Database.migrate` at start-up."""
