"""Somebody has the token with which a server was started, from the list of processes or from a file."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from filestore.backends import open_backend
from filestore.core.digest import token_digest
from filestore.core.signing import SigningKeys
from filestore.http.wire import API
from tests.support.commands import SCRIPTS, Home
from tests.support.server import SECONDS, eventually

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-one-run"
ASKED = 12
"""How often both workers are asked, each time with a new connection."""


def statuses(url: str, path: str, *, token: str | None = TOKEN) -> set[int]:
    """The statuses of many answers, of both workers. 0 stands for a request that was cut, because its token was removed."""
    found = set()
    for _ in range(ASKED):
        try:
            found.add(asked(url, "GET", path, token=token)[0])
        except (ConnectionError, HTTPException):
            found.add(0)
    return found


def asked(url: str, method: str, path: str, *, token: str | None) -> tuple[int, bytes]:
    """The status and the body of an answer."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=SECONDS)
    try:
        connection.request(method, path, headers={} if token is None else {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def signed(url: str, file_id: str) -> str:
    """The path that a server signs for a record."""
    status, body = asked(url, "POST", f"{API}/files/{file_id}/sign", token=TOKEN)
    assert 200 == status
    return f"/{json.loads(body)['path']}"


def test_the_token_of_a_running_server_is_removed(home: Home, tmp_path: Path) -> None:
    """`token rm` finds it beside the server, and both workers refuse it from then on. No server takes it again."""
    root = tmp_path / "root"
    digest = str(token_digest(TOKEN))
    with home.server("--workers", "2", "--guesses-limit", "100000", root=root, environ={"FILESTORE_TOKEN": TOKEN}) as server:
        assert {200} == statuses(server.url, f"{API}/repository")
        (listed,) = home.result("token", "ls", "--root", root)["tokens"]
        assert digest == listed["digest"]
        removed = home.result("token", "rm", digest[:16], "--root", root)
        assert digest == removed["digest"]
        eventually(lambda: {401} == statuses(server.url, f"{API}/repository"))
        assert [] == home.result("token", "ls", "--root", root)["tokens"]
    told = home.failure("serve", "--root", root, "--port", "0", environ={"FILESTORE_TOKEN": TOKEN})
    assert "it was removed by `filestore token rm`, and no server takes it again" in told
    assert TOKEN not in told


def test_a_token_that_is_kept_and_given_is_removed(home: Home, tmp_path: Path) -> None:
    """The token of the folder is often in the environment of the next start. Its removal ends both."""
    root = tmp_path / "root"
    with home.server(root=root) as server:
        token = server.token
    with home.server("--guesses-limit", "100000", root=root, environ={"FILESTORE_TOKEN": token}) as server:
        assert 1 == len(home.result("token", "ls", "--root", root)["tokens"])
        home.result("token", "rm", token, "--root", root)
        eventually(lambda: {401} == statuses(server.url, f"{API}/repository", token=token))


def test_signing_keys_change_beside_a_server(home: Home, tmp_path: Path) -> None:
    """Both workers accept the URLs of two keys. A second rotation, and one with --revoke, end those before."""
    root = tmp_path / "root"
    source = tmp_path / "a.txt"
    source.write_text("content")
    with home.server("--workers", "2", "--guesses-limit", "100000", root=root, environ={"FILESTORE_TOKEN": TOKEN}) as server:
        environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": TOKEN}
        file_id = home.result("push", source, environ=environ)["id"]
        urls = [signed(server.url, file_id)]
        (first,) = keys_of(home, root)
        assert [True, None] == [first["signs"], first["made_at"]]
        second, previous = home.result("signing-key", "rotate", "--root", root)["keys"]
        assert (first["id"], True) == (previous["id"], previous["accepted_until"] is not None)
        urls.append(until_signed_by(server.url, file_id, second["id"]))
        assert {200} == statuses(server.url, urls[0], token=None) | statuses(server.url, urls[1], token=None)
        third, _ = home.result("signing-key", "rotate", "--root", root)["keys"]
        urls.append(until_signed_by(server.url, file_id, third["id"]))
        eventually(lambda: {403} == statuses(server.url, urls[0], token=None))
        assert {200} == statuses(server.url, urls[1], token=None) | statuses(server.url, urls[2], token=None)
        assert 1 == len(home.result("signing-key", "rotate", "--revoke", "--root", root)["keys"])
        eventually(lambda: {403} == statuses(server.url, urls[1], token=None) | statuses(server.url, urls[2], token=None))
        assert {200} == statuses(server.url, signed(server.url, file_id), token=None)


def keys_of(home: Home, root: Path) -> list[dict[str, Any]]:
    """What `signing-key ls` lists."""
    keys: list[dict[str, Any]] = home.result("signing-key", "ls", "--root", root)["keys"]
    return keys


def until_signed_by(url: str, file_id: str, key_id: str) -> str:
    """Return the first URL that a server signs with a key."""
    found: list[str] = []

    def is_signed() -> bool:
        found.append(signed(url, file_id))
        return found[-1].split("/")[4].startswith(key_id)

    eventually(is_signed)
    return found[-1]


ROTATE = """
import os, sys
from filestore.repository.index import sqlite, tokens

place = sys.argv.pop(1)
replace = tokens.replace_keys


def killed(connection, keys):
    if place == "before":
        os.kill(os.getpid(), 9)
    replace(connection, keys)
    if place == "between":
        os.kill(os.getpid(), 9)


tokens.replace_keys = killed
if place == "after":
    commit = sqlite.SqliteIndex._commit

    def committed(self, connection, *arguments, **named):
        commit(self, connection, *arguments, **named)
        os.kill(os.getpid(), 9)

    sqlite.SqliteIndex._commit = committed
from filestore_cli.start import main

main()
"""


@pytest.mark.parametrize(("place", "is_new"), [("before", False), ("between", False), ("after", True)])
def test_a_rotation_is_killed(home: Home, tmp_path: Path, place: str, *, is_new: bool) -> None:
    """Either the old keys or the new ones are there, and the next rotation works."""
    home.create_repository()
    (before,) = keys_of(home, home.data)
    done = home.run("-c", ROTATE, place, "signing-key", "rotate", program=sys.executable)
    assert -signal.SIGKILL == done.returncode, done.stderr
    after = keys_of(home, home.data)
    assert (2 if is_new else 1) == len(after)
    assert before["id"] == after[-1]["id"]
    assert 2 == len(home.result("signing-key", "rotate")["keys"])
    assert SigningKeys.first(asyncio.run(secret_of(home.data))).current.id == before["id"]


async def secret_of(root: Path) -> bytes:
    """The secret of a repository, which earlier versions read too."""
    store, index = await open_backend(root)
    try:
        return await index.secret()
    finally:
        await index.close()
        await store.close()


def test_the_arguments_of_a_process_have_no_token(home: Home, tmp_path: Path) -> None:
    """Every user can read them. With a token file, the token is not there."""
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(TOKEN)
    # A start of Python itself is not forked from another process, whose arguments would be shown.
    command = (sys.executable, SCRIPTS / "filestore", "serve")
    with home.server("--token-file", path, root=tmp_path / "root", command=command) as server:
        assert {200} == statuses(server.url, f"{API}/repository")
        shown = subprocess.run(
            ["ps", "-ww", "-o", "args=", "-p", str(server.process.pid)], capture_output=True, text=True, check=True
        )
    assert str(path) in shown.stdout
    assert TOKEN not in shown.stdout
