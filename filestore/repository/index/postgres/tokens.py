"""Tokens, and the keys that sign URLs, in an index in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from filestore.core.digest import Digest
from filestore.core.scopes import Scope
from filestore.core.signing import SigningKeys
from filestore.repository.index.postgres import quotas
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.protocol import USED_MICROSECONDS, TokenRow
from filestore.repository.index.signing_keys import pack_keys

_SCOPES = {str(scope): scope for scope in Scope}
_SELECT = "SELECT digest, namespace, label, created_at, scope, prefix, expires_at, used_at FROM access_tokens"
_INSERT = (
    "INSERT INTO access_tokens (digest, namespace, label, created_at, scope, prefix, expires_at, used_at)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (digest) DO UPDATE SET"
    " namespace = excluded.namespace, label = excluded.label, scope = excluded.scope, prefix = excluded.prefix,"
    " expires_at = excluded.expires_at"
)
# A row that another process writes is skipped: it is about to have a new time, or to be removed.
_USED = (
    "WITH free AS MATERIALIZED (SELECT pg_try_advisory_xact_lock_shared($4) AS is_free),"
    " used AS (UPDATE access_tokens SET used_at = $2 WHERE digest IN (SELECT digest FROM access_tokens, free"
    " WHERE is_free AND digest = ANY($1::bytea[]) AND (used_at IS NULL OR used_at NOT BETWEEN $3 AND $2)"
    " FOR UPDATE OF access_tokens SKIP LOCKED))"
    " SELECT is_free FROM free"
)


async def select_token(connection: Connection, token_digest: Digest) -> TokenRow | None:
    """Return a token, or None."""
    row = await connection.fetchrow(f"{_SELECT} WHERE digest = $1", token_digest)
    return None if row is None else _token(row)


async def select_tokens(connection: Connection) -> list[TokenRow]:
    """Return all tokens, the oldest first."""
    rows = await connection.fetch(f"{_SELECT} ORDER BY created_at, digest")
    return [token for row in rows if (token := _token(row)) is not None]


async def select_invalid_tokens(connection: Connection, limit: int) -> list[tuple[str, str]]:
    """Return the namespaces and the digests, as text, of at most `limit` rows that are no valid tokens."""
    rows = await connection.fetch(_SELECT)
    return list(islice(((row[1], row[0].hex()) for row in rows if _token(row) is None), limit))


def _token(row: Sequence[Any]) -> TokenRow | None:
    """Return a row as a token. Return None if its scope is not known here: it permits nothing."""
    digest, namespace, label, created_at, scope, prefix, expires_at, used_at = row
    if scope not in _SCOPES:
        return None
    return TokenRow(Digest(digest), namespace, label, created_at, _SCOPES[scope], prefix, expires_at, used_at)


async def select_secrets(connection: Connection) -> list[bytes]:
    """Return the secret, if it exists, and the row with the keys, if there is one."""
    return [value for (value,) in await connection.fetch("SELECT value FROM secrets ORDER BY kind DESC")]


async def replace_keys(connection: Connection, keys: SigningKeys) -> None:
    """Replace the row with the keys."""
    statement = "INSERT INTO secrets (kind, value) VALUES ('keys', $1) ON CONFLICT (kind) DO UPDATE SET value = excluded.value"
    await connection.execute(statement, pack_keys(keys))


async def insert_secret(connection: Connection, secret: bytes) -> None:
    """Insert the secret, unless there is one."""
    await connection.execute("INSERT INTO secrets (kind, value) VALUES ('secret', $1) ON CONFLICT DO NOTHING", secret)


async def insert_token(connection: Connection, token: TokenRow) -> None:
    """Insert a token, or change everything of it but its times of creation and last use."""
    await connection.execute(_INSERT, *token._replace(scope=str(token.scope)))  # type: ignore[arg-type]  # as the table has it


async def update_used_at(connection: Connection, digests: Sequence[Digest], now: int, lock: int) -> bool:
    """Set the times of last use of tokens to `now`, where they are not in the minute before it.

    Return False if somebody has the lock alone. Then nothing is written.
    """
    return bool(await connection.fetchval(_USED, digests, now, now - USED_MICROSECONDS, lock))


async def delete_token(connection: Connection, token_digest: Digest) -> bool:
    """Delete a token and its quotas. Return whether it existed."""
    await quotas.delete_quotas_of(connection, token_digest)
    deleted = await connection.fetchval("DELETE FROM access_tokens WHERE digest = $1 RETURNING true", token_digest)
    return bool(deleted)
