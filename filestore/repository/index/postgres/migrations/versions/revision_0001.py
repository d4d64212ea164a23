"""Make the tables of the first version."""

from __future__ import annotations

from alembic import op

from filestore.repository.index.postgres import tables_base, tables_history

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all tables, and then what counts their rows."""
    connection = op.get_bind()
    for statement in (*tables_base.TABLES, *tables_history.TABLES, *tables_base.TRIGGERS):
        connection.exec_driver_sql(statement)
