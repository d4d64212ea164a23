"""Tokens, and the keys that sign URLs, in an index in SQLite.

The first row of `secrets` is the secret, which never changes. After the first rotation, a second row has the keys. An
earlier version of filestore reads the first row only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import islice
from typing import Any

from filestore.core.digest import Digest
from filestore.core.scopes import Scope
from filestore.core.signing import SigningKeys
from filestore.repository.index import quotas
from filestore.repository.index.protocol import USED_MICROSECONDS, TokenRow
from filestore.repository.index.schema import has_version
from filestore.repository.index.signing_keys import pack_keys

_SCOPES = {str(scope): scope for scope in Scope}
_SELECT = "SELECT digest, namespace, label, created_at, scope, prefix, expires_at, used_at FROM access_tokens"
_SELECT_OLDER = "SELECT digest, namespace, label, created_at, 'admin', '', NULL, NULL FROM tokens"


def select_token(connection: sqlite3.Connection, token_digest: Digest) -> TokenRow | None:
    """Return a token, or None."""
    row = connection.execute(f"{_select(connection)} WHERE digest = ?", (token_digest,)).fetchone()
    return None if row is None else _token(row)


def select_tokens(connection: sqlite3.Connection) -> list[TokenRow]:
    """Return all tokens, the oldest first."""
    rows = connection.execute(f"{_select(connection)} ORDER BY created_at, digest")
    return [token for row in rows if (token := _token(row)) is not None]


def select_invalid_tokens(connection: sqlite3.Connection, limit: int) -> list[tuple[str, str]]:
    """Return the namespaces and the digests, as text, of at most `limit` rows that are no valid tokens."""
    rows = connection.execute(_select(connection))
    found = ((str(row[1]), bytes(row[0]).hex()) for row in rows if _token(row) is None)
    return list(islice(found, limit))


def _select(connection: sqlite3.Connection) -> str:
    return _SELECT if has_version(connection, 5) else _SELECT_OLDER


def _token(row: tuple[Any, ...]) -> TokenRow | None:
    """Return a row as a token. Return None if its values are not valid or not known here: it permits nothing."""
    digest, namespace, label, created_at, scope, prefix, expires_at, used_at = row
    times = [created_at, *(time for time in (expires_at, used_at) if time is not None)]
    if scope not in _SCOPES or type(prefix) is not str or not all(type(time) is int for time in times):
        return None
    return TokenRow(Digest(digest), namespace, label, created_at, _SCOPES[scope], prefix, expires_at, used_at)


def select_secrets(connection: sqlite3.Connection) -> list[bytes]:
    """Return the secret, if it exists, and the row with the keys, if there is one."""
    return [bytes(secret) for (secret,) in connection.execute("SELECT secret FROM secrets ORDER BY rowid")]


def replace_keys(connection: sqlite3.Connection, keys: SigningKeys) -> None:
    """Replace the row with the keys."""
    connection.execute("DELETE FROM secrets WHERE rowid != (SELECT min(rowid) FROM secrets)")
    connection.execute("INSERT INTO secrets (secret) VALUES (?)", (pack_keys(keys),))


def insert_secret(connection: sqlite3.Connection, secret: bytes) -> None:
    """Insert the secret, unless there is one."""
    connection.execute("INSERT INTO secrets (secret) SELECT ? WHERE NOT EXISTS (SELECT * FROM secrets)", (secret,))


def insert_token(connection: sqlite3.Connection, token: TokenRow) -> None:
    """Insert a token, or change everything of it but its times of creation and last use."""
    # A server of an earlier version would not know that it is limited now.
    connection.execute("DELETE FROM tokens WHERE digest = ?", (token.digest,))
    connection.execute(
        "INSERT INTO access_tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET"
        " namespace = excluded.namespace, label = excluded.label, scope = excluded.scope, prefix = excluded.prefix,"
        " expires_at = excluded.expires_at",
        token._replace(scope=str(token.scope)),  # type: ignore[arg-type]  # as the table has it
    )


def update_used_at(connection: sqlite3.Connection, digests: Sequence[Digest], now: int) -> None:
    """Set the times of last use of tokens to `now`, where they are not in the minute before it."""
    connection.executemany(
        "UPDATE access_tokens SET used_at = ? WHERE digest = ? AND (used_at IS NULL OR used_at NOT BETWEEN ? AND ?)",
        [(now, digest, now - USED_MICROSECONDS, now) for digest in digests],
    )


def delete_token(connection: sqlite3.Connection, token_digest: Digest) -> bool:
    """Delete a token and its quotas. Return whether it existed."""
    quotas.delete_quotas_of(connection, token_digest)
    connection.execute("DELETE FROM tokens WHERE digest = ?", (token_digest,))
    return connection.execute("DELETE FROM access_tokens WHERE digest = ?", (token_digest,)).rowcount > 0
