"""`filestore token` as people use it: scopes, prefixes, expiry and rotation."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.commands import Home
from tests.support.server import eventually

pytestmark = pytest.mark.slow


def listed_tokens(home: Home) -> dict[str, dict[str, Any]]:
    """What `token ls` lists, by labels."""
    return {token["label"]: token for token in home.result("token", "ls")["tokens"]}


def test_tokens_with_scopes(home: Home) -> None:
    """`token ls` shows what each permits. The default is what people need, and the first token has all scopes."""
    with home.server(root=home.data) as server:
        digests = [home.result("token", "new", "--label", "plain")["digest"]]
        limited = ("--scope", "write", "--expires", "90d", "--prefix", "logs-", "--namespace", "team")
        made = home.result("token", "new", *limited, "--label", "nightly")
        digests.append(made["digest"])
        assert ("write", "logs-", "team") == (made["scope"], made["prefix"], made["namespace"])
        tokens = listed_tokens(home)
        first = tokens.pop("made by the first start of serve")
        assert (["admin", "delete", "write"], digests) == (
            [first["scope"], *(token["scope"] for token in tokens.values())],
            [token["digest"] for token in tokens.values()],
        )
        nightly = tokens["nightly"]
        assert ("logs-", made["expires_at"], None) == (nightly["prefix"], nightly["expires_at"], nightly["used_at"])
        shown = home.run("token", "ls").stdout.splitlines()
        assert ["id", "created", "expires", "last", "used", "scope", "namespace", "prefix", "label"] == shown[0].split()
        assert re.search(rf"{made['digest'][:16]}  .*  20\d\d-.* UTC  never +write   team +logs- +nightly", "\n".join(shown))
        home.result("ls", environ=server.environ)
        eventually(lambda: listed_tokens(home)["made by the first start of serve"]["used_at"] is not None)


def test_a_token_is_rotated(home: Home) -> None:
    """The new one has the properties of the old one, and lasts as long. The old one ends, or stays for a while."""
    made = home.result("token", "new", "--scope", "read", "--expires", "90d", "--prefix", "logs-", "--label", "web", "--create")
    kept = home.result("token", "rotate", made["digest"], "--keep", "1h")
    same = ("namespace", "label", "scope", "prefix")
    assert {key: made[key] for key in same} == {key: kept[key] for key in same}
    assert made["token"] != kept["token"]
    assert kept["old"]["digest"] == made["digest"]
    assert kept["old"]["expires_at"] < made["expires_at"] < kept["expires_at"]
    ended = home.result("token", "rotate", kept["token"], "--expires", "1d")
    assert ended["expires_at"] < kept["expires_at"]
    tokens = {token["digest"] for token in home.result("token", "ls")["tokens"]}
    assert {made["digest"], ended["digest"]} == tokens
    told = home.run("token", "rotate", ended["token"], "--keep", "1h")
    assert f"The old token {ended['digest'][:16]} is valid until 20" in told.stderr
    assert "0 tokens match" in home.failure("token", "rotate", kept["token"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--prefix", "a/b"), "no name begins with 'a/b': it contains a slash"),
        (("--prefix", "a" * 256), "allowed are 255"),
        (("--scope", "all"), "'all' is not one of 'read', 'write', 'delete', 'admin'"),
        (("--expires", "0"), "more than 0 seconds"),
        (("--expires", "99999d"), "at most 100 years"),
        (("--expires", "soon"), "is not a time such as 24h"),
    ],
)
def test_a_token_that_cannot_be(home: Home, options: tuple[str, ...], reason: str) -> None:
    """It is refused before a folder is looked for."""
    done = home.run("token", "new", *options)
    assert (2, "") == (done.returncode, done.stdout)
    assert reason in " ".join(done.stderr.split())
