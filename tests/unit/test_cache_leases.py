from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from filestore.cache import leases
from filestore.cache.leases import BEAT_SECONDS, STALE_SECONDS, Leases

KEY = "repository.default.entry"


@pytest.fixture(autouse=True)
def no_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases beat only when a test calls `beat`.

    A beat of the process, every ten seconds, would write those again that a test has removed.
    """
    monkeypatch.setattr(leases._heart, "beat_for", lambda _: None)


@pytest.fixture
def ours(tmp_path: Path) -> Leases:
    """The leases of a process."""
    return Leases(tmp_path)


@pytest.fixture
def theirs(tmp_path: Path) -> Leases:
    """Those of another, or of another cache in this one."""
    return Leases(tmp_path)


def holder(root: Path) -> Path:
    """The folder of the only holder."""
    (found,) = (path for path in (root / "leases").iterdir() if path.is_dir())
    return found


def test_what_is_held_is_seen_by_others(ours: Leases, theirs: Leases) -> None:
    """From the pin to the release."""
    hold = ours.hold()
    assert ({}, False) == (theirs.held(), theirs.is_held(KEY))
    hold.pin(KEY)
    assert ({KEY: 0}, True) == (theirs.held(), theirs.is_held(KEY))
    hold.release()
    assert ({}, False) == (theirs.held(), theirs.is_held(KEY))


def test_an_entry_is_held_until_the_last_hold_of_it_ends(ours: Leases, theirs: Leases) -> None:
    """Each hold counts once, however often it pins, and may be released again."""
    first, second = ours.hold(), ours.hold()
    for hold in (first, first, second):
        hold.pin(KEY)
    first.release()
    first.release()
    assert theirs.is_held(KEY)
    second.unpin(KEY)
    assert not theirs.is_held(KEY)


def test_a_reservation_is_seen_by_others(ours: Leases, theirs: Leases) -> None:
    """Bytes, which may change, be taken back, and end with the hold; those of two holders add up."""
    hold, other = ours.hold(), theirs.hold()
    hold.reserve(KEY, 100)
    other.reserve(KEY, 20)
    assert {KEY: 120} == theirs.held()
    hold.reserve(KEY, 50)
    assert {KEY: 70} == theirs.held()
    hold.reserve(KEY, 0)
    assert {KEY: 20} == theirs.held()
    hold.reserve(KEY, 7)
    hold.release()
    assert {KEY: 20} == theirs.held()
    other.release()
    assert {} == theirs.held()


def test_a_pin_that_is_there_is_not_written_again(ours: Leases, tmp_path: Path) -> None:
    """A hit writes nothing, but for the first of a process."""
    hold = ours.hold()
    hold.pin(KEY)
    os.utime(holder(tmp_path) / KEY, (1, 1))
    ours.hold().pin(KEY)
    assert 1 == (holder(tmp_path) / KEY).stat().st_mtime


def test_closing_gives_all_back(ours: Leases, theirs: Leases, tmp_path: Path) -> None:
    """And may be done again; nothing is left of them."""
    ours.hold().pin(KEY)
    ours.close()
    ours.close()
    assert {} == theirs.held()
    assert [] == [path for path in (tmp_path / "leases").iterdir() if path.is_dir()]


HOLDING = """
import sys
from pathlib import Path
from filestore.cache.leases import Leases
Leases(Path(sys.argv[1])).hold().reserve(sys.argv[2], 100)
print("held", flush=True)
sys.stdin.read()
"""


def test_leases_die_with_their_process(ours: Leases, tmp_path: Path) -> None:
    """The leases of a killed process end at once, even before its parent waits for it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path, KEY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert b"held\n" == process.stdout.readline()
        assert {KEY: 100} == ours.held()
        process.send_signal(signal.SIGKILL)
        # Ended, and nobody has taken note: a zombie.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not ours.is_held(KEY)
        assert {} == ours.held()
    assert [] == [path for path in (tmp_path / "leases").iterdir() if path.is_dir()]


def test_another_process_of_the_same_number_is_another(ours: Leases, theirs: Leases, tmp_path: Path) -> None:
    """Numbers come round again: the time of the start says which one it was."""
    ours.hold().pin(KEY)
    place = holder(tmp_path)
    before, _, label = place.name.rpartition("-")
    process, _, started = before.rpartition("-")
    place.rename(place.with_name(f"{process}-{int(started) - 1}-{label}"))
    assert not theirs.is_held(KEY)


@pytest.mark.parametrize("elsewhere", ["a" * 32 + "-1", "0" * 32 + "-0"])
def test_who_cannot_be_looked_at_lives_as_long_as_it_beats(ours: Leases, theirs: Leases, tmp_path: Path, elsewhere: str) -> None:
    """For a process of another host or container, or without /proc, the mtime of its folder decides."""
    ours.hold().pin(KEY)
    place = holder(tmp_path).rename(tmp_path / "leases" / f"{elsewhere}-1-1-00000000")
    now = place.stat().st_mtime
    os.utime(place, (now, now - STALE_SECONDS + 2 * BEAT_SECONDS))
    assert theirs.is_held(KEY)
    os.utime(place, (now, now - STALE_SECONDS - 1))
    assert not theirs.is_held(KEY)
    assert {} == theirs.held()
    assert not place.exists()


def test_who_was_taken_for_dead_writes_its_leases_again(ours: Leases, theirs: Leases, tmp_path: Path) -> None:
    """After a machine has slept, the first beat restores leases that others removed."""
    ours.hold().reserve(KEY, 100)
    for path in [*holder(tmp_path).iterdir()]:
        path.unlink()
    holder(tmp_path).rmdir()
    assert {} == theirs.held()
    ours.beat()
    assert {KEY: 100} == theirs.held()


def test_a_beat_shows(ours: Leases, tmp_path: Path) -> None:
    """It refreshes the mtime by which others judge, and nothing where nothing was ever held."""
    ours.beat()
    ours.hold().pin(KEY)
    os.utime(holder(tmp_path), (1, 1))
    ours.beat()
    assert 1 < holder(tmp_path).stat().st_mtime


FORKING = """
import os, sys
from pathlib import Path
from filestore.cache.leases import Leases
leases = Leases(Path(sys.argv[1]))
leases.hold().pin(sys.argv[2])
child = os.fork()
if child == 0:
    leases.close()
    os._exit(0)
os.waitpid(child, 0)
print(Leases(Path(sys.argv[1])).is_held(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_fork_does_not_end_its_parent_s_leases(tmp_path: Path) -> None:
    """A child closes only what it made itself."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, tmp_path, KEY], capture_output=True, text=True, check=False
    )
    assert ("True\n", "") == (done.stdout, done.stderr)


def test_where_nothing_can_be_written_a_pin_is_not_an_error(tmp_path: Path) -> None:
    """The entry can be used; only other processes do not see that it is in use."""
    (tmp_path / "leases").write_bytes(b"")
    leases = Leases(tmp_path)
    leases.hold().pin(KEY)
    assert not leases.is_held(KEY)
    assert (["leases"], b"") == ([path.name for path in tmp_path.iterdir()], (tmp_path / "leases").read_bytes())


def test_a_lock_that_is_held_for_long_is_passed_by(tmp_path: Path, theirs: Leases) -> None:
    """A process that was stopped during an eviction does not stop others from pinning an entry."""
    ours = Leases(tmp_path, lock_seconds=0.01)
    with theirs.evicting():
        ours.hold().pin(KEY)
    assert theirs.is_held(KEY)
