"""The advisory locks by which processes exclude each other in a PostgreSQL database.

A transaction for one namespace has the lock of all namespaces shared, and that of its own alone. One for all has the first one
alone. A task has a lock of its session, which it loses with its connection.
"""

from __future__ import annotations

from blake3 import blake3

_CONTEXT = "filestore 2026-11-30 advisory lock"


def _key(kind: str, name: str = "") -> int:
    """Return the number of a lock. PostgreSQL knows locks by numbers of 64 bits, with a sign."""
    digest = blake3(f"{kind}\0{name}".encode(), derive_key_context=_CONTEXT).digest(8)
    return int.from_bytes(digest, "big", signed=True)


ALL_NAMESPACES = _key("all namespaces")
MIGRATION = _key("migration")


def namespace_key(namespace: str) -> int:
    """Return the key of the lock for writing to a namespace."""
    return _key("namespace", namespace)


def task_key(name: str) -> int:
    """Return the key of the lock `name` of `Index.try_lock`."""
    return _key("task", name)


def locking(namespace: str | None) -> str:
    """Return the statements that take the locks of a transaction, in the order in which everybody takes them."""
    if namespace is None:
        return f"SELECT pg_advisory_xact_lock({ALL_NAMESPACES})"
    shared = f"SELECT pg_advisory_xact_lock_shared({ALL_NAMESPACES})"
    return f"{shared}; SELECT pg_advisory_xact_lock({namespace_key(namespace)})"
