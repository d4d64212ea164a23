"""`filestore serve` with an upstream, and what other commands see of what it keeps."""

from __future__ import annotations

import random
import urllib.request
from pathlib import Path

from tests.support.commands import Home, Server
from tests.support.hub_upstream import running_hub
from tests.support.server import eventually

BIG = random.Random(20).randbytes(1 << 20)


def _read(server: Server, path: str) -> bytes:
    url = f"{server.url}/team/m/resolve/main/{path}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {server.token}"})
    with urllib.request.urlopen(request) as answer:
        return bytes(answer.read())


def test_serve_with_an_upstream(tmp_path: Path) -> None:
    """The options name the upstream, its files are served, and no command that looks at the repository is disturbed."""
    home, root = Home(tmp_path), tmp_path / "root"
    with running_hub() as hub:
        hub.commit("team/m", {"big": BIG, "small": b"small"})
        options = ("--upstream", hub.url, "--upstream-limit", "1GB", "--upstream-max-age-seconds", "60")
        with home.server(*options, root=root) as server:
            assert "export HF_TOKEN=$HF_TOKEN~...  (with your token of the upstream" in server.said
            assert (_read(server, "big"), _read(server, "small")) == (BIG, b"small")
            assert home.result("ls", environ=server.environ)["files"] == []
            eventually(lambda: not list((root / "upstream" / "incoming").iterdir()))
        assert home.run("check", "--root", root).returncode == 0
        assert home.run("gc", "--root", root, "--grace", "0s").returncode == 0
        backup = home.run("backup", tmp_path / "backup", "--full", "--root", root)
        assert backup.returncode == 0, backup.stderr
        hub.is_away = True
        with home.server("--offline", root=root, environ={"FILESTORE_UPSTREAM": hub.url}) as again:
            token = server.token
            served = again._replace(said=f"export FILESTORE_TOKEN={token}\n")
            assert (_read(served, "big"), _read(served, "small")) == (BIG, b"small")


def test_offline_needs_an_upstream(tmp_path: Path) -> None:
    """A server without an upstream is always offline, so the option is a mistake."""
    home = Home(tmp_path)
    done = home.run("serve", "--root", tmp_path / "root", "--create", "--port", "0", "--offline")
    assert done.returncode == 1
    assert "--upstream" in done.stderr


def test_a_token_that_ends_like_one_of_the_upstream(tmp_path: Path) -> None:
    """A part of such a token would be sent to the upstream, so no server accepts it."""
    home = Home(tmp_path)
    failure = home.failure(
        *("serve", "--root", tmp_path / "root", "--create", "--port", "0"), environ={"FILESTORE_TOKEN": "a-long-secret~hf_abc"}
    )
    assert "~hf_" in failure


def test_urls_that_are_no_hub(tmp_path: Path) -> None:
    """The URL of an upstream has no query, no user, and one of two schemes."""
    home = Home(tmp_path)
    for url in ("ftp://example.org", "https://user@example.org", "https://example.org/?a=b", "example.org"):
        done = home.run("serve", "--root", tmp_path / "root", "--create", "--port", "0", "--upstream", url)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
