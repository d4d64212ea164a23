"""What clients of the Hub see of a server that fetches from an upstream, which knows nothing of filestore."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.commands import Home, Server
from tests.support.hub_clients import HubClient, contents, named_digests
from tests.support.hub_upstream import LFS_SIZE, HubUpstream, running_hub

pytestmark = pytest.mark.slow
NAME = "team/their-model"
VERIFIES = pytest.mark.parametrize("client", ["1.19", "newest"], indirect=True)
"""The clients that have the command `hf cache verify`."""


@pytest.fixture
def upstream(model: Path) -> Iterator[HubUpstream]:
    """A Hub with the folder."""
    with running_hub() as running:
        running.commit(NAME, contents(model))
        yield running


@pytest.fixture
def server(upstream: HubUpstream, tmp_path: Path) -> Iterator[Server]:
    """A server that `filestore serve --upstream` started."""
    home = Home(tmp_path / "home")
    home.folder.mkdir()
    with home.server("--upstream", upstream.url, root=tmp_path / "root") as running:
        yield running


@pytest.fixture
def client(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> HubClient:
    """A user of a client, who has never used it. The newest one, unless a test names others."""
    home = Home(tmp_path / "user")
    home.folder.mkdir()
    return HubClient(getattr(request, "param", "newest"), home, server.url, server.token)


@pytest.mark.parametrize("client", ["0.36", "1.0", "1.19", "newest"], indirect=True)
def test_a_command_downloads_from_the_upstream(client: HubClient, upstream: HubUpstream, model: Path, tmp_path: Path) -> None:
    """All files arrive, under the commit of the upstream, and a second user's download asks the upstream for no byte."""
    files = contents(model)
    client.hf("download", NAME)
    snapshots = client.hub_home / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots"
    commit = upstream.repositories[NAME].revisions[0].commit
    assert files == contents(snapshots / commit)
    for path, content in files.items():
        assert (snapshots / commit / path).resolve().name in named_digests(content)
    client.hf("download", NAME, "--local-dir", tmp_path / "here")
    assert files == contents(tmp_path / "here")
    assert dict(upstream.sent) == {path: len(content) for path, content in files.items() if content}


@VERIFIES
def test_the_digests_are_those_of_the_upstream(client: HubClient, upstream: HubUpstream, model: Path) -> None:
    """`hf cache verify` compares what has arrived with the SHA-256 and the git blobs that the upstream states."""
    client.hf("download", NAME)
    assert any(len(content) >= LFS_SIZE for content in contents(model).values())
    client.hf("cache", "verify", NAME)
    assert upstream.count("/tree/") == 0


def test_two_users_at_once(client: HubClient, server: Server, upstream: HubUpstream, model: Path, tmp_path: Path) -> None:
    """Two first downloads at the same time take each file from the upstream once."""
    home = Home(tmp_path / "another")
    home.folder.mkdir()
    users = [client, HubClient(client.version, home, server.url, server.token)]
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(user.hf, "download", NAME, "--local-dir", user.home.folder / "here") for user in users]:
            done.result()
    assert [contents(user.home.folder / "here") for user in users] == [contents(model)] * 2
    assert dict(upstream.sent) == {path: len(content) for path, content in contents(model).items() if content}


def test_what_is_absent_at_the_upstream(client: HubClient) -> None:
    """A repository, a revision and a file that are absent there are told as the Hub tells them."""
    for arguments, kind in (
        ({"repo_id": "team/none", "filename": "config.json"}, "RepositoryNotFoundError"),
        ({"repo_id": NAME, "filename": "config.json", "revision": "none"}, "RevisionNotFoundError"),
        ({"repo_id": NAME, "filename": "none.json"}, "EntryNotFoundError"),
    ):
        assert kind in client.failure("hf_hub_download", **arguments).classes


def test_a_private_and_a_gated_repository(client: HubClient, upstream: HubUpstream) -> None:
    """Without a token of the upstream, the first one is absent, and the second one is gated."""
    upstream.commit("team/private", {"config.json": b"{}"}, private=True)
    upstream.commit("team/gated", {"config.json": b"{}"}, gated=True)
    for name, kind in (("team/private", "RepositoryNotFoundError"), ("team/gated", "GatedRepoError")):
        assert kind in client.failure("hf_hub_download", repo_id=name, filename="config.json").classes


@pytest.mark.parametrize("client", ["0.36", "1.0", "1.19", "newest"], indirect=True)
def test_a_private_repository_with_both_tokens(client: HubClient, upstream: HubUpstream, tmp_path: Path) -> None:
    """A token of the upstream after the one of the server opens a private repository, in the variable that clients read."""
    reader = "hf_" + "a" * 34
    upstream.commit("team/private", {"config.json": b"{}"}, private=True, readers=frozenset({reader}))
    tokens = {"HF_TOKEN": f"{client.environ['HF_TOKEN']}~{reader}"}
    client.hf("download", "team/private", "--local-dir", tmp_path / "here", environ=tokens)
    assert contents(tmp_path / "here") == {"config.json": b"{}"}
    assert {asked.authorization for asked in upstream.asked} == {None, f"Bearer {reader}"}


def test_the_list_of_files(client: HubClient, model: Path) -> None:
    """The client lists the same files as the upstream would."""
    assert sorted(contents(model)) == sorted(client.call("list_repo_files", repo_id=NAME))
