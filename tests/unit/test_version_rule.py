"""Which versions of a name may be removed."""

from __future__ import annotations

import pytest

from filestore.core.digest import Digest
from filestore.core.records import Kind, Record
from filestore.errors import InvalidInput
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


def test_kept_records_count_as_versions() -> None:
    """A record that is kept in any case does not make the rule keep another one."""
    kept = {VERSIONS[2].id, VERSIONS[0].id}
    assert [VERSIONS[3], VERSIONS[4]] == list(VersionRule(keep_last=2).select(VERSIONS, now=NOW, kept=kept))


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
