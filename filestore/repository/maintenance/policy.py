"""Remove old versions of names by the policy of their namespace, which is a `VersionRule` for each name."""

from __future__ import annotations

from collections.abc import AsyncIterator

from filestore.errors import InvalidInput
from filestore.repository.index.protocol import Index, Policy, PositionedRecord
from filestore.repository.maintenance.selection import VersionRule

_AT_ONCE = 500


def rule_of(policy: Policy) -> VersionRule | None:
    """Return the rule of a policy, or None if it removes nothing. Raises InvalidInput for a policy that is not valid."""
    if policy == Policy():
        return None
    try:
        return VersionRule(keep_last=policy.keep_last, older_than_seconds=policy.older_than_seconds)
    except InvalidInput as error:
        raise InvalidInput(f"this policy cannot be used: {error}") from None


async def old_versions(index: Index, namespace: str, *, now: int) -> AsyncIterator[list[PositionedRecord]]:
    """Yield the records that the policy of a namespace removes, in lists, the oldest first.

    What pipelines use is never removed. Raises InvalidInput for a policy that is not valid.
    """
    rule = rule_of(await index.policy(namespace))
    position = 0
    while rule is not None:
        found = await _superseded(index, namespace, position, rule=rule, now=now, limit=_AT_ONCE)
        if not found:
            break
        yield found
        position = found[-1].position


async def apply_policy(index: Index, namespace: str, *, now: int) -> set[str]:
    """Remove the old versions of the names of a namespace. Return the ids of the records that were removed."""
    removed: set[str] = set()
    async for found in old_versions(index, namespace, now=now):
        async with index.transaction(namespace) as transaction:
            # A newer version may have been removed since, or a pipeline may use a record now. So the question is asked
            # again, about these records.
            rule = rule_of(await index.policy(namespace))
            if rule is None:
                return removed
            still_old = await _superseded(index, namespace, found[0].position - 1, rule=rule, now=now, limit=len(found))
            for each in still_old:
                await transaction.remove_record(namespace, each.record.id)
            removed.update(each.record.id for each in still_old)
    return removed


async def _superseded(
    index: Index, namespace: str, position: int, *, rule: VersionRule, now: int, limit: int
) -> list[PositionedRecord]:
    """Return what `VersionRule.select` would of each name, without what pipelines use. One statement asks about all names."""
    return await index.superseded(
        namespace, position, newer_count=rule.kept_count, updated_before=rule.updated_before(now), limit=limit
    )
