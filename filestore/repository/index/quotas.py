"""Quotas of namespaces and tokens in an index in SQLite."""

from __future__ import annotations

import sqlite3

from filestore.core.digest import Digest
from filestore.core.quotas import NO_QUOTA, Quota
from filestore.repository.index.protocol import QuotaRow

TABLES = (
    # `token` is the digest of a token, or empty for the quota of the namespace itself.
    """CREATE TABLE quotas (
        namespace TEXT NOT NULL,
        token BLOB NOT NULL,
        size INTEGER,
        stored_size INTEGER,
        name_count INTEGER,
        uploads INTEGER,
        connections INTEGER,
        requests_per_second INTEGER,
        bytes_per_second INTEGER,
        PRIMARY KEY (namespace, token)
    ) WITHOUT ROWID""",
)
_COLUMNS = ", ".join(Quota._fields)
_SELECT = f"SELECT namespace, token, {_COLUMNS} FROM quotas ORDER BY namespace, token"  # noqa: S608  # constants
_INSERT = f"INSERT INTO quotas (namespace, token, {_COLUMNS}) VALUES (?, ?{', ?' * len(Quota._fields)})"  # noqa: S608  # the same


def has_table(connection: sqlite3.Connection) -> bool:
    """Return whether there may be quotas. There are none if an earlier version made the index."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'quotas'").fetchone() is not None


def select_quotas(connection: sqlite3.Connection) -> list[QuotaRow]:
    """Return all quotas, in the order of namespaces, with those of tokens after that of their namespace."""
    if not has_table(connection):
        return []
    rows = connection.execute(_SELECT)
    return [QuotaRow(namespace, Digest(token) if token else None, Quota(*limits)) for namespace, token, *limits in rows]


def replace_quota(connection: sqlite3.Connection, namespace: str, token: Digest | None, quota: Quota) -> None:
    """Replace a quota. One without limits is deleted."""
    connection.execute("DELETE FROM quotas WHERE namespace = ? AND token = ?", (namespace, token or b""))
    if quota != NO_QUOTA:
        connection.execute(_INSERT, (namespace, token or b"", *quota))


def delete_quotas_of(connection: sqlite3.Connection, token: Digest) -> None:
    """Delete the quotas of a token."""
    connection.execute("DELETE FROM quotas WHERE token = ?", (token,))
