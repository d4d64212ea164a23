"""Turns between processes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from filestore.system import turnstile
from filestore.system.turnstile import FILE_NAMES, Turnstile

LONG = 60.0


def test_who_waits_comes_before_who_has_just_left(tmp_path: Path) -> None:
    """The other one is in the turnstile from its first try on, also while it is not in the call."""
    busy, other = Turnstile(tmp_path), Turnstile(tmp_path)
    assert busy.try_enter(LONG)
    assert not other.try_enter(0)
    busy.leave()
    assert not busy.try_enter(0)
    assert other.try_enter(LONG)
    other.leave()
    assert busy.try_enter(LONG)
    busy.close()
    other.close()


def test_a_turn_that_is_not_used_is_left(tmp_path: Path) -> None:
    """A call that is cancelled gives its place back."""
    busy, cancelled = Turnstile(tmp_path), Turnstile(tmp_path)
    assert busy.try_enter(LONG)
    assert not cancelled.try_enter(0)
    cancelled.leave()
    busy.leave()
    assert busy.try_enter(LONG)


def test_a_stopped_process_delays_others_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the patience, a process goes on without its turn, and does not wait for the next one."""
    stopped, other = Turnstile(tmp_path), Turnstile(tmp_path)
    assert stopped.try_enter(LONG)
    monkeypatch.setattr(turnstile, "PATIENCE_SECONDS", 0.0)
    other._patience_seconds = 0.0
    for _ in range(3):
        assert other.try_enter(LONG)
        other.leave()
    stopped.leave()
    assert other.try_enter(LONG)
    assert not stopped.try_enter(0)


def test_without_lock_files_nobody_waits(tmp_path: Path) -> None:
    """In a folder where none can be made, SQLite's lock alone keeps writes apart."""
    absent = tmp_path / "absent"
    first, second = Turnstile(absent), Turnstile(absent)
    assert first.try_enter(LONG)
    assert second.try_enter(LONG)
    first.leave()
    second.close()


def test_a_child_does_not_keep_the_turn_of_its_parent(tmp_path: Path) -> None:
    """Its copies of the lock files are closed, so that the turn ends with the parent."""
    parent = Turnstile(tmp_path)
    assert parent.try_enter(LONG)
    places = {(tmp_path / name).stat().st_ino for name in FILE_NAMES}
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        kept = {path.stat().st_ino for path in Path("/proc/self/fd").iterdir() if path.exists()}
        os.write(writing, b"kept" if kept & places else b"none")
        os._exit(0)
    os.waitpid(child, 0)
    assert b"none" == os.read(reading, 4)
    os.close(reading)
    os.close(writing)
    assert not Turnstile(tmp_path).try_enter(0)
    parent.close()


def test_many_threads_with_places_of_their_own_work_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a process as far as the lock files are concerned. Nobody gives up."""
    monkeypatch.setattr(turnstile, "PATIENCE_SECONDS", 60.0)
    inside, most, turns = 0, 0, list[int]()

    def work(number: int) -> None:
        nonlocal inside, most
        place = Turnstile(tmp_path)
        for _ in range(10):
            while not place.try_enter(0.1):
                pass
            inside += 1
            most = max(most, inside)
            turns.append(number)
            inside -= 1
            place.leave()
        place.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (1, 30) == (most, len(turns))
