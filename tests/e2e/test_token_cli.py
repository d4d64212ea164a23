"""`filestore token` as people use it: scopes, prefixes, expiry and rotation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Home
from tests.support.server import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
"""Some tests type twenty commands, each of which takes long on a machine that is busy with other work."""


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
        first = tokens.pop("first token")
        assert (["admin", "delete", "write"], digests) == (
            [first["scope"], *(token["scope"] for token in tokens.values())],
            [token["digest"] for token in tokens.values()],
        )
        nightly = tokens["nightly"]
        # Logs name tokens by this.
        assert [made["digest"][:16]] * 2 == [made["id"], nightly["id"]]
        assert ("logs-", made["expires_at"], None) == (nightly["prefix"], nightly["expires_at"], nightly["used_at"])
        shown = home.run("token", "ls").stdout.splitlines()
        assert ["id", "created", "expires", "last", "used", "scope", "namespace", "prefix", "label"] == shown[0].split()
        assert re.search(rf"{made['digest'][:16]}  .*  20\d\d-.* UTC  never +write   team +logs- +nightly", "\n".join(shown))
        home.result("ls", environ=server.environ)
        eventually(lambda: listed_tokens(home)["first token"]["used_at"] is not None)


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
    assert "8 or more digits of its digest" in home.failure("token", "rotate", ended["digest"][:7])


def test_what_is_said_of_a_token(home: Home) -> None:
    """The words for a prefix say what it means, and a token that has expired is not called valid."""
    done = home.run("token", "new", "--prefix", "logs-", "--expires", "1s", "--create")
    assert "delete access to names that begin with 'logs-' in the namespace default" in done.stderr
    eventually(lambda: "expired 20" in home.run("token", "ls").stdout)
    rotated = home.run("token", "rotate", done.stdout.strip(), "--keep", "1h")
    assert re.search(r"The old token [0-9a-f]{16} expired on 20", rotated.stderr)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--prefix", "a/b/c"), "no name begins with 'a/b/c': after an owner, a name has up to 96 letters"),
        (("--prefix", "api/"), "no name begins with 'api/': the owner 'api' is reserved"),
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


def test_a_token_for_an_owner(home: Home, tmp_path: Path) -> None:
    """A prefix that is an owner with its slash permits the names of this owner, and no others."""
    source = tmp_path / "model.bin"
    source.write_bytes(b"what is in the file")
    with home.local_server() as server:
        made = home.result("token", "new", "--prefix", "team/")["token"]
        environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": made}
        for name in ("teammate/m", "team.bin"):
            home.result("push", source, "--name", name, environ=server.environ)
            assert "begin with 'team/'" in home.failure("push", source, "--name", name, environ=environ)
            assert f"nothing is stored under {name!r}" in home.failure("log", name, environ=environ)
            assert f"nothing is stored under {name!r}" in home.failure("tag", name, "v1", environ=environ)
        home.result("push", source, "--name", "team/m", environ=environ)
        assert "v1" == home.result("tag", "team/m", "v1", environ=environ)["label"]
        assert ["team"] == [record["owner"] for record in home.result("ls", environ=environ)["files"]]


def test_what_commands_need(home: Home, tmp_path: Path) -> None:
    """A reader fetches and measures, a writer pushes, and the default removes. The sentence of an error names the scope."""
    source = tmp_path / "model.bin"
    source.write_bytes(b"content of a file")
    with home.server(root=home.data) as server:
        environs = {
            scope: server.environ | {"FILESTORE_TOKEN": home.result("token", "new", "--scope", scope)["token"]}
            for scope in ("read", "write", "delete")
        }
        told = f"{server.url} allows this only with a token of the scope 'write' or a higher one; this token has 'read'"
        for command in (("push", source), ("push", source, "--dry-run")):
            assert told in home.failure(*command, environ=environs["read"])
        pushed = home.result("push", source, environ=environs["write"])
        for question in (("ls",), ("info", "model.bin"), ("du",), ("fetch", "model.bin", "-o", tmp_path / "fetched")):
            home.result(*question, environ=environs["read"])
        assert source.read_bytes() == (tmp_path / "fetched").read_bytes()
        assert "of the scope 'delete'" in home.failure("rm", pushed["id"], environ=environs["write"])
        refused = json.loads(home.run("rm", pushed["id"], "--json", environ=environs["write"]).stdout)
        assert ([], 0) == (refused["removed"], refused["freed_size"])
        home.result("rm", pushed["id"], environ=environs["delete"])


def test_a_prefix_at_the_command_line(home: Home, tmp_path: Path) -> None:
    """A push under another name is refused in one sentence, and other names are not found."""
    source = tmp_path / "model.bin"
    source.write_bytes(b"content of a file")
    with home.server(root=home.data) as server:
        home.result("push", source, environ=server.environ)
        made = home.result("token", "new", "--prefix", "logs-")
        environ = server.environ | {"FILESTORE_TOKEN": made["token"]}
        told = "this token is only for names that begin with 'logs-', and not for the name 'model.bin'"
        assert told in home.failure("push", source, environ=environ)
        assert "model.bin" in home.failure("fetch", "model.bin", "-o", tmp_path / "fetched", environ=environ)
        home.result("push", source, "--name", "logs-1", environ=environ)
        assert ["logs-1"] == [file["name"] for file in home.result("ls", environ=environ)["files"]]


def test_an_expired_token_at_the_command_line(home: Home, tmp_path: Path) -> None:
    """The sentence says that it has expired. `ls` shows it, and a rotation renews it."""
    with home.server("--guesses-limit", "1", root=home.data) as server:
        made = home.result("token", "new", "--expires", "1s", "--label", "short")
        environ = server.environ | {"FILESTORE_TOKEN": made["token"]}
        eventually(lambda: home.run("ls", environ=environ).returncode != 0)
        assert (
            f"{server.url} refused the token, because it has expired; give a valid token of that server "
            "(this one is from FILESTORE_TOKEN); on the machine of that server, `filestore token rotate` makes a new one like it"
        ) == home.failure("ls", environ=environ)
        assert "expired 20" in home.run("token", "ls").stdout
        renewed = home.result("token", "rotate", made["digest"], "--expires", "1d")
        assert [] == home.result("ls", environ=environ | {"FILESTORE_TOKEN": renewed["token"]})["files"]


def test_a_token_of_a_run_is_not_rotated(home: Home, tmp_path: Path) -> None:
    """One that the folder has too is, and the server that was given it refuses it from then on."""
    root = tmp_path / "root"
    with home.server(root=root, environ={"FILESTORE_TOKEN": "a-token-of-one-run"}):
        (given,) = home.result("token", "ls", "--root", root)["tokens"]
        assert "admin" == given["scope"]
        assert "was given to a server" in home.failure("token", "rotate", given["digest"], "--root", root)
        kept = home.result("token", "new", "--root", root)["token"]
    with home.server(root=root, environ={"FILESTORE_TOKEN": kept}) as server:
        environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": kept}
        home.result("ls", environ=environ)
        home.result("token", "rotate", kept, "--root", root)
        eventually(lambda: home.run("ls", environ=environ).returncode != 0)
