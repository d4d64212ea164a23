"""The changes of the tables of an index in PostgreSQL, which Alembic applies."""
