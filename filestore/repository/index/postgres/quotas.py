"""Quotas of namespaces and tokens in an index in PostgreSQL."""

from __future__ import annotations

from filestore.core.digest import Digest
from filestore.core.quotas import NO_QUOTA, Quota
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.protocol import QuotaRow

_COLUMNS = ", ".join(Quota._fields)
_SELECT = f"SELECT namespace, token, {_COLUMNS} FROM quotas ORDER BY namespace, token"  # constants
_VALUES = ", ".join(f"${number}" for number in range(3, 3 + len(Quota._fields)))
_NEW = ", ".join(f"{field} = excluded.{field}" for field in Quota._fields)
_REPLACE = (
    f"INSERT INTO quotas (namespace, token, {_COLUMNS}) VALUES ($1, $2, {_VALUES})"  # constants
    f" ON CONFLICT (namespace, token) DO UPDATE SET {_NEW}"
)


async def select_quotas(connection: Connection) -> list[QuotaRow]:
    """Return all quotas, in the order of namespaces, with those of tokens after that of their namespace."""
    rows = await connection.fetch(_SELECT)
    return [QuotaRow(namespace, Digest(token) if token else None, Quota(*limits)) for namespace, token, *limits in rows]


async def replace_quota(connection: Connection, namespace: str, token: Digest | None, quota: Quota) -> None:
    """Replace a quota. One without limits is deleted."""
    if quota == NO_QUOTA:
        await connection.execute("DELETE FROM quotas WHERE namespace = $1 AND token = $2", namespace, token or b"")
    else:
        await connection.execute(_REPLACE, namespace, token or b"", *quota)


async def delete_quotas_of(connection: Connection, token: Digest) -> None:
    """Delete the quotas of a token."""
    await connection.execute("DELETE FROM quotas WHERE token = $1", token)
