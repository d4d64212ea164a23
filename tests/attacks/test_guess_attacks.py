"""Somebody tries tokens and signatures one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from filestore.errors import TooManyGuesses
from filestore.http.server.guesses import ADDRESSES_LIMIT, WINDOW_SECONDS, Guesses
from filestore.http.server.origin import client_group
from filestore.http.wire import API
from tests.support.clock import Clock
from tests.support.server import TOKEN, running_server

LIMIT = 5
PATH = f"{API}/repository"


@pytest.mark.slow
def test_tokens_are_guessed(tmp_path: Path) -> None:
    """After the limit, guesses get 429, whatever they guess. The right token passes from the same address."""
    with running_server(tmp_path / "root", guesses_limit=LIMIT, check=False) as server:
        for number in range(LIMIT):
            assert 401 == server.ask("GET", PATH, token=None).status  # a request without a token does not guess
            wrong = f"/signed/default/9999999999/{number:064}/run_files/a"
            answer = server.ask("GET", wrong, token=None) if number % 2 else server.ask("GET", PATH, token=f"guess-{number}")
            assert (403 if number % 2 else 401) == answer.status
        for token, path in (("guess-more", PATH), (None, f"/signed/default/9999999999/{7:064}/run_files/a")):
            answer = server.ask("GET", path, token=token)
            assert (429, "too-many-guesses", "60") == (answer.status, answer.slug, answer.headers["Retry-After"])
        assert 401 == server.ask("GET", PATH, token=None).status
        assert 200 == server.ask("GET", PATH, token=TOKEN).status
        expecting = server.ask("POST", f"{API}/chunks/missing", b"x", token="guess-100", headers={"Expect": "100-continue"})
        assert 429 == expecting.status
        status, log = server.stop()
    lines = [line for line in log.splitlines() if "wrong token" in line]
    assert (0, LIMIT + 1) == (status, len(lines)), log
    assert all("127.0.0.1" in line for line in lines)
    assert [f"'{PATH}'" in line for line in lines[:LIMIT]] == [True, False] * (LIMIT // 2) + [True]
    assert re.search(r"guess-\d|[0-9]{60}", log) is None


@pytest.mark.slow
def test_a_guesser_changes_its_forwarded_address(tmp_path: Path) -> None:
    """What a client itself sends in X-Forwarded-For gives it no new count, with and without a trusted proxy."""
    for number, (settings, header) in enumerate(
        (({}, "203.0.113.{}"), ({"trusted_proxies": "127.0.0.1"}, "203.0.113.{}, 198.51.100.7, 127.0.0.1"))
    ):
        with running_server(tmp_path / f"root-{number}", guesses_limit=LIMIT, check=False, **settings) as server:
            answers = [
                server.ask("GET", PATH, token="guess", headers={"X-Forwarded-For": header.format(each)}).status
                for each in range(LIMIT + 1)
            ]
            assert [401] * LIMIT + [429] == answers
            if settings:
                # Another client of the same proxy has a count of its own.
                other = {"X-Forwarded-For": "198.51.100.8"}
                assert 401 == server.ask("GET", PATH, token="guess", headers=other).status


def test_many_addresses_guess() -> None:
    """The memory for them is limited. An IPv6 network of 64 bits, of which one client may have all, is one address."""
    guesses = Guesses(LIMIT, clock=Clock())
    for number in range(ADDRESSES_LIMIT + 1000):
        guesses.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "GET /")
    assert ADDRESSES_LIMIT == len(guesses._windows)
    assert "2001:db8::/64" == client_group("2001:db8::1") == client_group("2001:db8::ffff:1")
    assert "192.0.2.1" == client_group("::ffff:192.0.2.1") == client_group("192.0.2.1")


def test_a_guesser_waits() -> None:
    """The next minute begins a new count."""
    clock = Clock()
    guesses = Guesses(LIMIT, clock=clock)
    for _ in range(2):
        for _ in range(LIMIT):
            guesses.note("192.0.2.1", "GET /")
        with pytest.raises(TooManyGuesses):
            guesses.note("192.0.2.1", "GET /")
        clock.now += WINDOW_SECONDS
