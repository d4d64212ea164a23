"""Remove a namespace: its tokens, its records and the uses of them. A collection then removes its content."""

from __future__ import annotations

from typing import NamedTuple

from filestore.core.quotas import NO_QUOTA
from filestore.errors import FileInUse
from filestore.repository.given_tokens import given_tokens, remove_given
from filestore.repository.index.protocol import Index, Policy
from filestore.repository.links import forget_links

_AT_ONCE = 500


class RemovedNamespace(NamedTuple):
    """What was removed of a namespace."""

    record_count: int
    token_count: int


async def remove_namespace(index: Index, namespace: str, *, force: bool = False) -> RemovedNamespace:
    """Remove the tokens and records of a namespace, its policy and its quota. An interrupted call is completed by the next one.

    Raises FileInUse, and removes nothing, if a pipeline uses a record, unless `force` is set.
    """
    async with index.transaction() as transaction:
        # First the tokens, so that nobody stores more meanwhile.
        for use in [] if force else await index.uses(namespace):
            raise FileInUse(use.file_id, use.pipeline_name)
        tokens = [row.digest for row in await index.tokens() if row.namespace == namespace]
        given = {token.digest for token in await given_tokens(index) if not token.is_removed}
        for token in tokens:
            await transaction.remove_token(token)
        # Without the rows that limit them, they would permit everything.
        await remove_given(index, transaction, *given.intersection(tokens), namespace=namespace)
        await forget_links(transaction, namespace)
        await transaction.set_policy(namespace, Policy())
        await transaction.set_quota(namespace, NO_QUOTA)
        await transaction.remove_owners(namespace)
    count = 0
    while page := await index.records_after(namespace, 0, limit=_AT_ONCE):
        async with index.transaction(namespace) as transaction:
            for each in page:
                if not force and (users := await transaction.uses_of(namespace, each.record.id)):
                    raise FileInUse(each.record.id, users[0].pipeline_name)
                count += await transaction.remove_record(namespace, each.record.id) is not None
    return RemovedNamespace(count, len(tokens))
