"""Tokens, and the secret that signs URLs, in an index in SQLite."""

from __future__ import annotations

import sqlite3

from filestore.core.digest import Digest
from filestore.repository.index.protocol import TokenRow


def select_token_namespace(connection: sqlite3.Connection, token_digest: Digest) -> str | None:
    """Return the namespace of a token, or None."""
    row = connection.execute("SELECT namespace FROM tokens WHERE digest = ?", (token_digest,)).fetchone()
    return None if row is None else str(row[0])


def select_tokens(connection: sqlite3.Connection) -> list[TokenRow]:
    """Return all tokens, the oldest first."""
    rows = connection.execute("SELECT digest, namespace, label, created_at FROM tokens ORDER BY created_at, digest")
    return [TokenRow(Digest(digest), namespace, label, created_at) for digest, namespace, label, created_at in rows]


def select_secrets(connection: sqlite3.Connection) -> list[bytes]:
    """Return the secret that signs URLs, if it exists."""
    return [bytes(secret) for (secret,) in connection.execute("SELECT secret FROM secrets")]


def insert_secret(connection: sqlite3.Connection, secret: bytes) -> None:
    """Insert the secret, unless there is one."""
    connection.execute("INSERT INTO secrets (secret) SELECT ? WHERE NOT EXISTS (SELECT * FROM secrets)", (secret,))


def insert_token(connection: sqlite3.Connection, token: TokenRow) -> None:
    """Insert a token, or change its namespace and label."""
    connection.execute(
        "INSERT INTO tokens (digest, namespace, label, created_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (digest) DO UPDATE SET namespace = excluded.namespace, label = excluded.label",
        token,
    )


def delete_token(connection: sqlite3.Connection, token_digest: Digest) -> bool:
    """Delete a token. Return whether it existed."""
    return connection.execute("DELETE FROM tokens WHERE digest = ?", (token_digest,)).rowcount > 0
