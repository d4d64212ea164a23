"""Keep the links of a namespace in the index.

A link has a token of its own, which nobody knows, and which is the issuer of its signed URL (`filestore.core.signing`). So all
servers check a link as any signed URL, and it ends when the row of this token is removed or has expired. The state of the task
`links` of the namespace says which tokens are those of links, and what each is for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from filestore.core.commits import printable
from filestore.core.digest import Digest, token_digest
from filestore.core.links import LINK_SECONDS_LIMIT, NONCE_PATTERN, Link
from filestore.core.names import shortened
from filestore.core.paths import run_path
from filestore.core.records import Record
from filestore.core.scopes import Scope
from filestore.core.signing import SigningKeys, sign, signed_path
from filestore.errors import InvalidDigest, InvalidInput, LimitExceeded, NotFound, Unauthorized
from filestore.repository.given_tokens import given_tokens
from filestore.repository.index.protocol import TOKEN_ID_LENGTH, Index, TokenRow, Transaction

TASK = "links"
LINKS_LIMIT = 1000
"""How many links a namespace has at most."""

_SECOND = 1_000_000
_ID_DIGITS = 16


class LinkMaker(NamedTuple):
    """Who makes a link. Without an id, it is somebody who works on the folder itself."""

    token_id: str = ""
    label: str = ""
    is_temporary: bool = False
    """Whether the token is valid for minutes, as a JSON Web Token is, and cannot be looked up later."""


OPERATOR = LinkMaker()


@dataclass(frozen=True, slots=True)
class _KeptLink:
    """What is kept of a link."""

    file_id: str
    name: str
    created_at: int
    expires_at: int
    token_id: str
    made_by: str


async def make_link(index: Index, record: Record, *, seconds: float, nonce: str, maker: LinkMaker) -> Link:
    """Make a link to a record that lasts `seconds`, but not longer than the token of its maker.

    The same `nonce`, which is 32 hexadecimal digits, gives the same link again.

    Raises InvalidInput, LimitExceeded, StorageError; Unauthorized if the token of its maker was removed.
    """
    if not 0 < seconds <= LINK_SECONDS_LIMIT:
        raise InvalidInput(f"a link lasts more than 0 seconds and at most {LINK_SECONDS_LIMIT // 86400} days")
    if NONCE_PATTERN.match(nonce) is None:
        raise InvalidInput("the nonce of a link is 32 hexadecimal digits")
    if maker.is_temporary:
        raise InvalidInput("a link lasts longer than a JSON Web Token; ask for it with a token of the server")
    keys, now = await index.signing_keys(), _now()
    async with index.transaction() as transaction:
        rows = {row.digest: row for row in await index.tokens()}
        await _check_maker(index, maker, rows.values())
        kept = await _kept_links(index, record.namespace)
        for digest in [digest for digest in kept if (row := rows.get(digest)) is None or row.has_expired(now)]:
            del kept[digest]
            await transaction.remove_token(digest)
        digest = _digest(keys, record, nonce, maker)
        if digest not in kept:
            if len(kept) >= LINKS_LIMIT:
                raise LimitExceeded("the number of links of the namespace", len(kept) + 1, LINKS_LIMIT)
            ends = [row.expires_at for row in rows.values() if row.id == maker.token_id and row.expires_at is not None]
            expires_at = min([now + round(seconds * _SECOND), *ends])
            made_by = printable(maker.label) or maker.token_id
            kept[digest] = _KeptLink(record.id, record.full_name, now, expires_at, maker.token_id, made_by)
            await transaction.add_token(
                digest,
                namespace=record.namespace,
                label=f"link to {record.full_name}",
                scope=Scope.READ,
                prefix=record.full_name,
                expires_at=expires_at,
            )
        await _write(transaction, record.namespace, kept)
    return _link(digest, kept[digest])._replace(path=_path(keys, digest, record, kept[digest].expires_at))


async def _check_maker(index: Index, maker: LinkMaker, rows: Iterable[TokenRow]) -> None:
    """Raise Unauthorized if the token of a maker was removed. A server may not know it yet, and nothing would end the link."""
    removed = {str(token.digest)[:TOKEN_ID_LENGTH] for token in await given_tokens(index) if token.is_removed}
    if maker.token_id in removed.difference(row.id for row in rows):
        raise Unauthorized("the server")


async def list_links(index: Index, namespace: str, *, prefix: str = "") -> list[Link]:
    """Return the links that are valid, the oldest first. With a `prefix`, only those to names that begin with it."""
    kept = await _kept_links(index, namespace)
    now = _now()
    valid = {row.digest for row in await index.tokens() if not row.has_expired(now)} if kept else set()
    found = [_link(digest, link) for digest, link in kept.items() if digest in valid and link.name.startswith(prefix)]
    return sorted(found, key=lambda link: link.created_at)


async def revoke_link(index: Index, namespace: str, link_id: str, *, prefix: str = "") -> Link:
    """End a link. All servers notice it within about a second. Raises NotFound, StorageError."""
    async with index.transaction() as transaction:
        kept = await _kept_links(index, namespace)
        found = next((d for d, link in kept.items() if _id_of(d) == link_id and link.name.startswith(prefix)), None)
        if found is None or not await transaction.remove_token(found):
            raise NotFound(link_id)
        link = _link(found, kept.pop(found))
        await _write(transaction, namespace, kept)
    return link


async def end_links_of(index: Index, transaction: Transaction, maker: TokenRow, *, at: int | None = None) -> None:
    """End the links that were made with a token, now or no later than at the time `at`. `transaction` is one of `index`."""
    kept = await _kept_links(index, maker.namespace)
    made = [digest for digest, link in kept.items() if link.token_id == maker.id]
    for row in [row for row in await index.tokens() if row.digest in made] if made else []:
        await transaction.remove_token(row.digest)
        if at is None:
            del kept[row.digest]
            continue
        ends = min(at, row.expires_at or at)
        kept[row.digest] = replace(kept[row.digest], expires_at=ends)
        await transaction.add_token(
            row.digest, namespace=row.namespace, label=row.label, scope=row.scope, prefix=row.prefix, expires_at=ends
        )
    if made:
        await _write(transaction, maker.namespace, kept)


async def forget_links(transaction: Transaction, namespace: str) -> None:
    """Forget the links of a namespace, whose tokens the caller removes."""
    await transaction.set_task_state(namespace, TASK, None)


async def without_links(index: Index, rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Return the rows of tokens that are not those of links."""
    links: set[Digest] = set()
    for namespace in {row.namespace for row in rows}:
        links |= (await _kept_links(index, namespace)).keys()
    return [row for row in rows if row.digest not in links]


async def _kept_links(index: Index, namespace: str) -> dict[Digest, _KeptLink]:
    state = await index.task_state(namespace, TASK) or {}
    parsed = ((digest, _parse(digest, values)) for digest, values in state.items())
    return {Digest.parse(digest): link for digest, link in parsed if link is not None}


def _parse(digest: str, values: Any) -> _KeptLink | None:
    try:
        Digest.parse(digest)
        return _KeptLink(**{**values, "created_at": int(values["created_at"]), "expires_at": int(values["expires_at"])})
    except (InvalidDigest, KeyError, TypeError, ValueError):
        return None


async def _write(transaction: Transaction, namespace: str, kept: Mapping[Digest, _KeptLink]) -> None:
    state: dict[str, Any] = {str(digest): asdict(link) for digest, link in kept.items()}
    await transaction.set_task_state(namespace, TASK, state or None)


def _digest(keys: SigningKeys, record: Record, nonce: str, maker: LinkMaker) -> Digest:
    """Return the digest of the token of a link. The token cannot be computed without the secret of the repository."""
    return token_digest(f"link {sign(keys.secret, 'link', record.namespace, record.id, nonce, maker.token_id, expires_at=0)}")


def _path(keys: SigningKeys, digest: Digest, record: Record, expires_at: int) -> str:
    path = f"/{run_path(record.id, shortened(record.name))}"
    signed = signed_path(
        keys, "GET", path, namespace=record.namespace, expires_at=expires_at // _SECOND, issuer=keys.issuer(digest)
    )
    return signed.removeprefix("/")


def _link(digest: Digest, kept: _KeptLink) -> Link:
    return Link(_id_of(digest), kept.file_id, kept.name, kept.created_at, kept.expires_at, kept.made_by)


def _id_of(digest: Digest) -> str:
    return f"link_{str(digest)[:_ID_DIGITS]}"


def _now() -> int:
    return time.time_ns() // 1000
