"""Clients of the Hub and a server that fetches from another Hub what it does not have."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hub.conftest import by
from tests.support.commands import Home
from tests.support.hub_clients import VERSIONS, Hub, HubClient, contents
from tests.support.hub_upstream import running_hub

pytestmark = pytest.mark.slow


def user(folder: Path, version: str, url: str, token: str) -> HubClient:
    """A new user of a client."""
    folder.mkdir()
    return HubClient(version, Home(folder), url, token)


def test_clients_of_every_version_at_once(new_home: Home, model: Path, tmp_path: Path) -> None:
    """Each gets all files, the upstream sends each file once, and a new user gets them when the upstream is away."""
    files = contents(model)
    with running_hub() as upstream, new_home.server("--upstream", upstream.url, root=tmp_path / "root") as server:
        upstream.commit("team/model", files)
        clients = [
            user(tmp_path / f"{version}-{number}", version, server.url, server.token) for version in VERSIONS for number in (1, 2)
        ]
        targets = [client.home.folder / "here" for client in clients]
        with ThreadPoolExecutor(len(clients)) as pool:
            list(pool.map(lambda one, target: one.hf("download", "team/model", "--local-dir", target), clients, targets))
        assert Counter({path: len(content) for path, content in files.items() if content}) == +upstream.sent
        upstream.is_away = True
        later = user(tmp_path / "later", "newest", server.url, server.token)
        later.hf("download", "team/model", "--local-dir", tmp_path / "later/here")
        for target in (*targets, tmp_path / "later/here"):
            assert files == contents(target)


@by("1.0", "newest")
def test_the_second_server_with_both_tokens(hub: Hub, client: HubClient, stored: str, model: Path, new_home: Home) -> None:
    """A user of another filestore server gives the tokens of both servers in one text, and without the second gets nothing."""
    with new_home.server("--upstream", hub.server.url, root=new_home.folder / "root") as second:
        both = {"HF_ENDPOINT": second.url, "HF_TOKEN": f"{second.token}~{hub.server.token}"}
        client.hf("download", stored, "--local-dir", client.home.folder / "here", environ=both)
        assert contents(model) == contents(client.home.folder / "here")
        refused = client.run("download", stored, environ={"HF_ENDPOINT": second.url, "HF_TOKEN": second.token})
        assert 0 != refused.returncode
