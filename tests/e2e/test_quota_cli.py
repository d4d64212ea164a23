"""The commands for quotas, and what users of a server with quotas see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.commands import Home
from tests.support.generator import octets
from tests.support.server import eventually

pytestmark = pytest.mark.slow


def is_refused(home: Home, path: Path, environ: Mapping[str, str]) -> bool:
    """Return whether a push is refused. A file that was stored is removed: a push of it could not be refused later."""
    done = home.run("push", path, "--json", environ=environ)
    if done.returncode == 0:
        home.result("rm", json.loads(done.stdout)["id"], environ=environ)
    return done.returncode == 1


def test_quota_of_a_running_server(home: Home) -> None:
    """A new limit holds soon, the client says what to do, `du` shows the limit, and a removal makes room again."""
    (home.folder / "one").write_bytes(octets(1, 50_000))
    (home.folder / "two").write_bytes(octets(2, 50_000))
    with home.local_server() as server:
        pushed = home.result("push", home.folder / "one", "--quiet", environ=server.environ)
        home.result("quota", "set", "--size", "60kB", "--names", "10")
        eventually(lambda: is_refused(home, home.folder / "two", server.environ))
        said = home.failure("push", home.folder / "two", environ=server.environ)
        assert "the bytes of all files of the namespace default would be 100000, and its quota is 60000" in said
        assert "`filestore du`" in said
        # Nothing failed in the server, and its log has nothing of it.
        assert "log" not in said
        for environ in ({}, server.environ):
            quota = home.result("du", environ=environ)["quota"]
            assert (60_000, 10, 50_000, 1) == (
                quota["limits"]["size"],
                quota["limits"]["name_count"],
                quota["used"]["size"],
                quota["used"]["name_count"],
            )
        assert "50.0 kB of 60.0 kB (83 %)" in home.run("du", environ=server.environ).stdout
        # No quota binds a command on the folder itself.
        home.result("push", home.folder / "two", "--quiet")
        home.result("rm", pushed["id"], environ=server.environ)
        home.result("push", home.folder / "two", "--name", "two", "--quiet", environ=server.environ)


def test_quotas_are_set_listed_and_removed(home: Home) -> None:
    """Limits that are not given stay, `none` removes one, and the quota of a token ends with the token."""
    home.create_repository()
    token = home.result("token", "new", "--namespace", "team")["digest"]
    home.result("quota", "set", "--namespace", "team", "--stored", "500GB", "--requests", "100/s")
    changed = home.result("quota", "set", "--namespace", "team", "--stored", "none", "--bandwidth", "1MB/s")
    assert (None, 100, 1_000_000) == tuple(
        changed["limits"][name] for name in ("stored_size", "requests_per_second", "bytes_per_second")
    )
    home.result("quota", "set", "--everybody", "--names", "5")
    home.result("quota", "set", "--token", token[:8], "--connections", "3")
    listed = home.result("quota", "ls")["quotas"]
    assert [(None, None), ("team", None), ("team", token)] == [(each["namespace"], each["token"]) for each in listed]
    assert {"stored_size": 0, "size": 0, "name_count": 0} == listed[1]["used"]
    assert "connections  3" in home.run("quota", "ls").stdout

    home.result("token", "rm", token)
    home.result("quota", "rm", "--namespace", "team")
    assert [None] == [each["namespace"] for each in home.result("quota", "ls")["quotas"]]


@pytest.mark.parametrize("keep", [(), ("--keep", "1h")])
def test_a_rotated_token_keeps_its_quota(home: Home, keep: tuple[str, ...]) -> None:
    """A rotation lifts no limit. The quota of the old token ends with that token."""
    home.create_repository()
    old = home.result("token", "new", "--namespace", "team")["digest"]
    home.result("quota", "set", "--token", old[:8], "--requests", "3/s", "--connections", "2")
    new = home.result("token", "rotate", old, *keep)["digest"]
    rows = [row for row in home.result("quota", "ls")["quotas"] if row["token"] is not None]
    assert {row["token"] for row in rows} == ({new, old} if keep else {new})
    assert [("team", 3, 2)] * len(rows) == [
        (row["namespace"], row["limits"]["requests_per_second"], row["limits"]["connections"]) for row in rows
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--stored", "0"), "too small"),
        (("--names", "many"), "'many' is not a whole number"),
        (("--bandwidth", "1kB/s"), "the smallest size here is 65536"),
        (("--token", "0123456789", "--stored", "1GB"), "a token has no limit --stored"),
        (("--token", "01234567", "--requests", "5"), "0 tokens match"),
        (("--namespace", "a", "--everybody", "--names", "5"), "give one of"),
        ((), "at least one limit"),
    ],
)
def test_a_quota_that_cannot_be_is_refused(home: Home, arguments: tuple[str, ...], said: str) -> None:
    """The message names what is wrong, and nothing changes."""
    home.create_repository()
    done = home.run("quota", "set", *arguments)
    assert done.returncode in {1, 2}
    assert said in " ".join(done.stderr.split())
    assert [] == home.result("quota", "ls")["quotas"]
