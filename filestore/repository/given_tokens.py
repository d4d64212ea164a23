"""Keep the tokens that running servers were given by `--token` in the index, so that they can be listed and removed.

They are in the state of the task `given-tokens` of no namespace, by their digests. They are valid only in the servers
that they were given to; a row here permits nothing. A removed token stays here, and no server takes it again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from filestore.core.digest import Digest
from filestore.errors import InvalidDigest
from filestore.repository.index.protocol import Index, Transaction

TASK = "given-tokens"
KEPT_LIMIT = 1000
"""How many tokens are kept. The oldest ones that were not removed are forgotten."""

_NO_NAMESPACE = ""


@dataclass(frozen=True, slots=True)
class GivenToken:
    """A token that a server was given."""

    digest: Digest
    namespace: str
    given_at: int
    """When a server was last given it, in microseconds since 1970."""
    is_removed: bool = False


async def given_tokens(index: Index) -> list[GivenToken]:
    """Return the tokens that servers were given, and those that were removed, the oldest first."""
    state = await index.task_state(_NO_NAMESPACE, TASK) or {}
    tokens = [token for digest, row in state.items() if (token := _parse(digest, row)) is not None]
    return sorted(tokens, key=lambda token: token.given_at)


async def note_given(index: Index, given: Mapping[Digest, str]) -> list[Digest]:
    """Note that a server was given tokens, which are the keys of `given`, for the namespaces that are its values.

    Return those that were removed earlier: the server must not take them.
    """
    now = time.time_ns() // 1000
    async with index.transaction() as transaction:
        known = {token.digest: token for token in await given_tokens(index)}
        removed = [digest for digest in given if digest in known and known[digest].is_removed]
        for digest, namespace in given.items():
            if digest not in removed:
                known[digest] = GivenToken(digest, namespace, now)
        await _write(transaction, known)
    return removed


async def remove_given(index: Index, transaction: Transaction, *digests: Digest, namespace: str) -> None:
    """Remove tokens that servers may have been given. Each of them notices it within about a second.

    `transaction` is one of `index`. Call this once in it.
    """
    known = {token.digest: token for token in await given_tokens(index)}
    now = time.time_ns() // 1000
    known |= {digest: GivenToken(digest, namespace, now, is_removed=True) for digest in digests}
    await _write(transaction, known)


async def _write(transaction: Transaction, known: Mapping[Digest, GivenToken]) -> None:
    tokens = sorted(known.values(), key=lambda token: (token.is_removed, token.given_at))[-KEPT_LIMIT:]
    state = {
        str(token.digest): {"namespace": token.namespace, "given_at": token.given_at, "is_removed": token.is_removed}
        for token in tokens
    }
    await transaction.set_task_state(_NO_NAMESPACE, TASK, state)


def _parse(digest: str, row: Any) -> GivenToken | None:
    try:
        return GivenToken(Digest.parse(digest), str(row["namespace"]), int(row["given_at"]), row["is_removed"] is True)
    except (InvalidDigest, ValueError, TypeError, KeyError):
        return None
