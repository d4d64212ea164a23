"""Tokens, and the keys that sign URLs, in an index in SQLite.

The first row of `secrets` is the secret, which never changes. After the first rotation, a second row has the keys. An
earlier version of filestore reads the first row only.
"""

from __future__ import annotations

import json
import sqlite3

from filestore.core.digest import Digest
from filestore.core.signing import SigningKey, SigningKeys
from filestore.errors import IndexDamaged
from filestore.repository.index.protocol import TokenRow


def select_token_namespace(connection: sqlite3.Connection, token_digest: Digest) -> str | None:
    """Return the namespace of a token, or None."""
    row = connection.execute("SELECT namespace FROM tokens WHERE digest = ?", (token_digest,)).fetchone()
    return None if row is None else str(row[0])


def select_tokens(connection: sqlite3.Connection) -> list[TokenRow]:
    """Return all tokens, the oldest first."""
    rows = connection.execute("SELECT digest, namespace, label, created_at FROM tokens ORDER BY created_at, digest")
    return [TokenRow(Digest(digest), namespace, label, created_at) for digest, namespace, label, created_at in rows]


_KEYS = b"signing keys 1\n"
"""The beginning of the row with the keys."""


def select_secrets(connection: sqlite3.Connection) -> list[bytes]:
    """Return the secret, if it exists, and the row with the keys, if there is one."""
    return [bytes(secret) for (secret,) in connection.execute("SELECT secret FROM secrets ORDER BY rowid")]


def parse_keys(rows: list[bytes], *, path: str) -> SigningKeys:
    """Return the keys from what `select_secrets` returned. Raises IndexDamaged."""
    secret, *others = rows
    if not others:
        return SigningKeys.first(secret)
    try:
        kept = json.loads(others[0].removeprefix(_KEYS))
        current, previous = (None if key is None else SigningKey(bytes.fromhex(key[0]), int(key[1])) for key in kept["keys"])
        until = int(kept["previous_until"])
    except (ValueError, TypeError, KeyError, IndexError):
        raise IndexDamaged(path, "the keys that sign URLs cannot be read") from None
    if current is None:
        raise IndexDamaged(path, "it has lost the key that signs URLs")
    return SigningKeys(secret, current, previous, until)


def replace_keys(connection: sqlite3.Connection, keys: SigningKeys) -> None:
    """Replace the row with the keys."""
    kept = [None if key is None else [key.secret.hex(), key.made_at] for key in (keys.current, keys.previous)]
    row = _KEYS + json.dumps({"keys": kept, "previous_until": keys.previous_until}).encode()
    connection.execute("DELETE FROM secrets WHERE rowid != (SELECT min(rowid) FROM secrets)")
    connection.execute("INSERT INTO secrets (secret) VALUES (?)", (row,))


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
