"""Which versions of a name may be removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from filestore.core.digest import Digest
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import InvalidInput
from filestore.repository.index.protocol import Policy
from filestore.repository.index.sqlite import open_index
from filestore.repository.maintenance.policy import apply_policy, old_versions
from filestore.repository.maintenance.selection import VersionRule

NOW = 1_800_000_000_000_000
HOUR = 3600 * 1_000_000


def version(age_hours: int) -> Record:
    """A version that was stored so many hours ago; its id has the number of hours."""
    moment = NOW - age_hours * HOUR
    digest = Digest(age_hours.to_bytes(32, "big", signed=True))
    return Record(f"file_{age_hours % 1000:032}", "name", digest, 1, Kind.FILE, "default", moment, moment)


VERSIONS = [version(hours) for hours in range(5)]


@pytest.mark.parametrize(
    ("rule", "removed"),
    [
        (VersionRule(), [1, 2, 3, 4]),
        (VersionRule(keep_last=1), [1, 2, 3, 4]),
        (VersionRule(keep_last=3), [3, 4]),
        (VersionRule(keep_last=5), []),
        (VersionRule(keep_last=10**9), []),
        (VersionRule(older_than_seconds=0), [1, 2, 3, 4]),
        (VersionRule(older_than_seconds=2 * 3600), [3, 4]),
        (VersionRule(older_than_seconds=1e9), []),
        (VersionRule(keep_last=4, older_than_seconds=3600), [4]),
        (VersionRule(keep_last=1, older_than_seconds=3 * 3600), [4]),
    ],
)
def test_versions_outside_all_limits_are_selected(rule: VersionRule, removed: list[int]) -> None:
    """They come in their order."""
    assert [VERSIONS[place] for place in removed] == list(rule.select(VERSIONS, now=NOW))


@pytest.mark.parametrize("rule", [VersionRule(), VersionRule(keep_last=1), VersionRule(older_than_seconds=0)])
def test_the_newest_version_is_never_selected(rule: VersionRule) -> None:
    """Not even if it is the only one, and very old."""
    assert [] == list(rule.select([version(900)], now=NOW))
    assert [] == list(rule.select([], now=NOW))


def test_versions_may_come_in_pages() -> None:
    """A rule selects the same versions if it is told how many came before."""
    rule = VersionRule(keep_last=3)
    whole = list(rule.select(VERSIONS, now=NOW))
    assert whole == [*rule.select(VERSIONS[:2], now=NOW), *rule.select(VERSIONS[2:], now=NOW, newer_count=2)]


def test_a_time_in_the_future_is_not_old() -> None:
    """The clock may have been set back since."""
    newest, future = version(0), version(-5)
    assert [] == list(VersionRule(older_than_seconds=0).select([newest, future], now=NOW))


@pytest.mark.parametrize(
    "limits", [{"keep_last": 0}, {"keep_last": -1}, {"older_than_seconds": -1}, {"older_than_seconds": float("nan")}]
)
def test_impossible_rules(limits: dict[str, int]) -> None:
    """Nobody can keep no version, or versions of a negative age."""
    with pytest.raises(InvalidInput):
        VersionRule(**limits)


@pytest.mark.parametrize("keep_last", [None, 1, 2, 4])
@pytest.mark.parametrize("older_than_seconds", [None, 0, 3, 100])
async def test_policy_removes_what_the_rule_selects(
    tmp_path: Path, keep_last: int | None, older_than_seconds: int | None
) -> None:
    """The index finds old versions of all names in one statement, by the same rule. The clock may have been set back."""
    moments = iter([5, 1, 9, 3, 7, 2, 8, 4, 6, 0])
    index = await open_index(tmp_path / "index.sqlite", now=lambda: NOW - next(moments) * 1_000_000)
    async with index.transaction() as transaction:
        for number, name in enumerate("aabacbbaba"):
            digest = Digest(number.to_bytes(32, "big"))
            await transaction.add_record("default", name=name, digest=digest, size=1, kind=Kind.FILE)
        await transaction.set_policy("default", Policy(keep_last, older_than_seconds))
    rule = VersionRule(keep_last=keep_last, older_than_seconds=older_than_seconds)
    selected: set[str] = set()
    if keep_last is not None or older_than_seconds is not None:
        for name in "abc":
            versions = await index.versions("default", Reference(name=name), limit=10)
            selected.update(record.id for record in rule.select(versions, now=NOW))
    assert selected == {each.record.id async for found in old_versions(index, "default", now=NOW) for each in found}
    assert selected == await apply_policy(index, "default", now=NOW)
    await index.close()
