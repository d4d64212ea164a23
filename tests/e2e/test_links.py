"""`filestore link` as people use it, and what its URLs permit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.support.commands import Home, Server, notes
from tests.support.generator import octets
from tests.support.server import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
"""Some tests type twenty commands, each of which takes long on a machine that is busy with other work."""

CONTENT = octets(7, 3 << 20)


@pytest.fixture
def server(home: Home) -> Iterator[Server]:
    """A server that has `weights.bin`."""
    with home.server(root=home.data) as server:
        (home.folder / "weights.bin").write_bytes(CONTENT)
        home.result("push", home.folder / "weights.bin", environ=server.environ)
        yield server


def status(url: str, method: str = "GET") -> int:
    """Return the status of a request without a token. It is 0 if the answer is cut, as it is when its link ends meanwhile."""
    try:
        with urlopen(Request(url, method=method), timeout=60) as answer:  # an URL of the test's server
            answer.read()
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except (ConnectionError, HTTPException):
        return 0


def read(url: str) -> bytes:
    """Return what a client without a token reads."""
    with urlopen(url, timeout=60) as answer:  # an URL of the test's server
        return bytes(answer.read())


def token(home: Home, *arguments: str) -> dict[str, str]:
    """Make a token. Return its digest, and the variable that gives it to a command."""
    made = home.result("token", "new", *arguments)
    return {"digest": made["digest"], "FILESTORE_TOKEN": made["token"]}


def test_a_link_is_made_listed_and_revoked(home: Home, server: Server) -> None:
    """Standard output is the URL alone. Everyone can read that version, and nothing else. Another version changes nothing."""
    done = home.run("link", "weights.bin", "--for", "2h", environ=server.environ)
    url = done.stdout.strip()
    assert url.startswith(f"{server.url}/signed/")
    assert "Everyone who has this URL can read weights.bin until 20" in notes(done)
    assert CONTENT == read(url)
    assert (200, 405, 403) == (status(url, "HEAD"), status(url, "DELETE"), status(url.replace("weights", "other")))
    (home.folder / "weights.bin").write_bytes(b"another version")
    home.result("push", home.folder / "weights.bin", environ=server.environ)
    assert CONTENT == read(url)

    (listed,) = home.result("link", "--list", environ=server.environ)["links"]
    assert ("weights.bin", "first token") == (listed["name"], listed["made_by"])
    assert url not in home.run("link", "--list", environ=server.environ).stdout
    assert ["first token"] == [each["label"] for each in home.result("token", "ls")["tokens"]]

    ended = home.run("link", "--revoke", listed["id"], environ=server.environ)
    assert f"{listed['id']} revoked: weights.bin\n" == ended.stdout
    eventually(lambda: 403 == status(url))
    assert "0 links in" in home.run("link", "--list", environ=server.environ).stdout
    assert "no valid link has the id" in home.failure("link", "--revoke", listed["id"], environ=server.environ)


def test_a_link_outlives_the_server_and_not_its_end(home: Home, server: Server) -> None:
    """Another server of the folder takes it. After its time nobody does."""
    long, short = (home.result("link", "weights.bin", "--for", time, environ=server.environ)["url"] for time in ("7d", "2s"))
    eventually(lambda: 403 == status(short))
    eventually(lambda: 1 == len(home.result("link", "--list", environ=server.environ)["links"]))
    with home.server(root=home.data) as another:
        assert CONTENT == read(long.replace(server.url, another.url))


def test_a_link_ends_with_the_token_that_made_it(home: Home, server: Server) -> None:
    """With its removal, its rotation, and its expiry. The links of other tokens stay."""
    makers = {
        "removed": token(home, "--scope", "write"),
        "rotated": token(home, "--scope", "write"),
        "kept": token(home, "--scope", "write"),
        "short": token(home, "--scope", "write", "--expires", "1h"),
    }
    urls = {name: home.result("link", "weights.bin", environ={**server.environ, **maker}) for name, maker in makers.items()}
    assert urls["short"]["expires_at"] < urls["kept"]["expires_at"]
    assert {200} == {status(made["url"]) for made in urls.values()}
    home.result("token", "rm", makers["removed"]["digest"])
    home.result("token", "rotate", makers["rotated"]["digest"])
    home.result("token", "rotate", makers["kept"]["digest"], "--keep", "1h")
    eventually(lambda: [403, 403] == [status(urls[name]["url"]) for name in ("removed", "rotated")])
    assert [200, 200] == [status(urls[name]["url"]) for name in ("kept", "short")]
    listed = {each["id"]: each for each in home.result("link", "--list", environ=server.environ)["links"]}
    assert {urls["kept"]["id"], urls["short"]["id"]} == set(listed)
    assert listed[urls["kept"]["id"]]["expires_at"] < urls["kept"]["expires_at"]


def test_who_may_make_and_revoke_links(home: Home, server: Server) -> None:
    """To make one needs `write`, and to revoke one `delete`. A prefix limits all of it."""
    reader, writer = (token(home, "--scope", scope) for scope in ("read", "write"))
    limited = token(home, "--prefix", "logs-")
    made = home.result("link", "weights.bin", environ={**server.environ, **writer})
    assert "'write'" in home.failure("link", "weights.bin", environ={**server.environ, **reader})
    assert [made["id"]] == [each["id"] for each in home.result("link", "--list", environ={**server.environ, **reader})["links"]]
    assert "'delete'" in home.failure("link", "--revoke", made["id"], environ={**server.environ, **writer})
    assert [] == home.result("link", "--list", environ={**server.environ, **limited})["links"]
    assert "nothing is stored" in home.failure("link", "weights.bin", environ={**server.environ, **limited})
    assert "no valid link" in home.failure("link", "--revoke", made["id"], environ={**server.environ, **limited})
    assert 200 == status(made["url"])
    home.result("link", "--revoke", made["id"], environ=server.environ)
    eventually(lambda: 403 == status(made["url"]))


def test_an_operator_sees_and_ends_links_in_the_folder(home: Home, server: Server, tmp_path: Path) -> None:
    """A folder has no URL to give. The audit log says who made links and who ended them."""
    made = home.result("link", "weights.bin", environ=server.environ)
    assert "only a server has URLs" in home.failure("link", "weights.bin")
    assert [made["id"]] == [each["id"] for each in home.result("link", "--list")["links"]]
    log = tmp_path / "audit.log"
    home.result("link", "--revoke", made["id"], environ={"FILESTORE_AUDIT_LOG": str(log)})
    line = json.loads(log.read_text())
    assert ("link-revoke", made["id"], "weights.bin") == (line["action"], line["link"], line["name"])
    eventually(lambda: 403 == status(made["url"]))


def test_what_a_link_cannot_be(home: Home, server: Server) -> None:
    """Each is refused by one sentence."""
    refused = {
        (): "give a stored file to link to",
        ("weights.bin", "--list"): "give a stored file to link to",
        ("--list", "--for", "7d"): "--for says how long",
        ("weights.bin:a",): "whole stored file",
        ("weights.bin", "--for", "900d"): "at most 366 days",
    }
    for arguments, reason in refused.items():
        done = home.run("link", *arguments, environ=server.environ)
        assert done.returncode in {1, 2}
        assert reason in done.stderr
    assert [] == home.result("link", "--list", environ=server.environ)["links"]


def test_links_are_in_a_restored_repository(home: Home, server: Server, tmp_path: Path) -> None:
    """They belong to the tokens of the repository."""
    made = home.result("link", "weights.bin", environ=server.environ)
    home.result("backup", tmp_path / "backup", "--root", home.data, "--full")
    home.result("restore", tmp_path / "backup", "--root", tmp_path / "restored")
    with home.server(root=tmp_path / "restored") as restored:
        assert CONTENT == read(made["url"].replace(server.url, restored.url))
        listed = home.result("link", "--list", "--url", tmp_path / "restored")["links"]
        assert [made["id"]] == [each["id"] for each in listed]
