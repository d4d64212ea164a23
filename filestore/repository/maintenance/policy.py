"""Remove old versions of names by the policy of their namespace, as `VersionRule` describes it for one name."""

from __future__ import annotations

from collections.abc import AsyncIterator

from filestore.errors import InvalidInput
from filestore.repository.index.protocol import Index, Policy, PositionedRecord

_AT_ONCE = 500
_SECOND = 1_000_000


def checked_policy(policy: Policy) -> Policy:
    """Return `policy`. Raises InvalidInput if it would keep no version of a name, or has a negative age."""
    if policy.keep_last is not None and policy.keep_last < 1:
        raise InvalidInput(f"a policy cannot keep {policy.keep_last} versions of a name; the least is 1")
    if policy.older_than_seconds is not None and policy.older_than_seconds < 0:
        raise InvalidInput(f"a policy cannot have the age {policy.older_than_seconds} s; the least is 0")
    return policy


async def old_versions(index: Index, namespace: str, *, now: int) -> AsyncIterator[list[PositionedRecord]]:
    """Yield the records that the policy of a namespace removes, in lists, the oldest first.

    A record with as many newer versions of its name as the policy keeps, at least one, is old. If the policy has an age,
    the record must also be of this age. What pipelines use is never old. Raises InvalidInput for a policy that is not valid.
    """
    policy = checked_policy(await index.policy(namespace))
    if policy == Policy():
        return
    before = None if policy.older_than_seconds is None else now - policy.older_than_seconds * _SECOND
    position = 0
    while found := await index.superseded(
        namespace, position, newer_count=policy.keep_last or 1, updated_before=before, limit=_AT_ONCE
    ):
        yield found
        position = found[-1].position


async def apply_policy(index: Index, namespace: str, *, now: int) -> set[str]:
    """Remove the old versions of the names of a namespace. Return the ids of the records that were removed."""
    removed: set[str] = set()
    async for found in old_versions(index, namespace, now=now):
        async with index.transaction() as transaction:
            # A newer version may have been removed since, or a pipeline may use a record now. So the question is asked
            # again, about these records.
            policy = checked_policy(await index.policy(namespace))
            still_old = await index.superseded(
                namespace,
                found[0].position - 1,
                newer_count=policy.keep_last or 1,
                updated_before=None if policy.older_than_seconds is None else now - policy.older_than_seconds * _SECOND,
                limit=len(found),
            )
            if policy == Policy():
                return removed
            for each in still_old:
                await transaction.remove_record(namespace, each.record.id)
            removed.update(each.record.id for each in still_old)
    return removed
