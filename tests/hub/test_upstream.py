"""What clients of the Hub see of a server that fetches from an upstream, which knows nothing of filestore."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.conftest import by
from tests.support.commands import Home, Server
from tests.support.hub_clients import HubClient, contents, named_digests
from tests.support.hub_upstream import LFS_SIZE, HubUpstream, running_hub

pytestmark = pytest.mark.slow
NAME = "team/their-model"


@pytest.fixture(scope="module")
def upstream(model: Path) -> Iterator[HubUpstream]:
    """A Hub with the folder."""
    with running_hub() as running:
        running.commit(NAME, contents(model))
        yield running


@pytest.fixture(scope="module")
def server(upstream: HubUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that `filestore serve --upstream` started."""
    folder = tmp_path_factory.mktemp("upstream")
    home = Home(folder / "home")
    home.folder.mkdir()
    with home.server("--upstream", upstream.url, root=folder / "root") as running:
        yield running


@pytest.fixture
def client(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> HubClient:
    """A user of a client, who has never used it. The newest one, unless a test names another."""
    home = Home(tmp_path / "user")
    home.folder.mkdir()
    return HubClient(getattr(request, "param", "newest"), home, server.url, server.token)


def test_a_command_downloads_from_the_upstream(client: HubClient, upstream: HubUpstream, model: Path, tmp_path: Path) -> None:
    """All files arrive, under the commit of the upstream, and a second download asks the upstream for no byte.

    `hf cache verify` compares them with the digests that the upstream states.
    """
    files = contents(model)
    client.hf("download", NAME)
    snapshots = client.hub_home / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots"
    commit = upstream.repositories[NAME].revisions[0].commit
    assert files == contents(snapshots / commit)
    for path, content in files.items():
        assert (snapshots / commit / path).resolve().name in named_digests(content)
    assert any(len(content) >= LFS_SIZE for content in files.values())
    client.hf("cache", "verify", NAME)
    assert upstream.count("/tree/") == 0
    client.hf("download", NAME, "--local-dir", tmp_path / "here")
    assert files == contents(tmp_path / "here")
    assert dict(+upstream.sent) == {path: len(content) for path, content in files.items() if content}


@by("1.0")
def test_what_is_absent_at_the_upstream(client: HubClient, upstream: HubUpstream) -> None:
    """A repository, a revision and a file that are absent there are told as the Hub tells them.

    Without a token of the upstream, a private repository is absent too, and a gated one is gated.
    """
    upstream.commit("team/hidden", {"config.json": b"{}"}, private=True)
    upstream.commit("team/gated", {"config.json": b"{}"}, gated=True)
    expected = {
        "RepositoryNotFoundError": {"repo_id": "team/none", "filename": "config.json"},
        "RevisionNotFoundError": {"repo_id": NAME, "filename": "config.json", "revision": "none"},
        "EntryNotFoundError": {"repo_id": NAME, "filename": "none.json"},
        "GatedRepoError": {"repo_id": "team/gated", "filename": "config.json"},
    }
    hidden = {"repo_id": "team/hidden", "filename": "config.json"}
    failures = client.attempts(*(("hf_hub_download", call) for call in (*expected.values(), hidden)))
    for kind, failure in zip((*expected, "RepositoryNotFoundError"), failures, strict=True):
        assert kind in failure.classes, failure


@by("0.36", "1.19")
def test_a_private_repository_with_both_tokens(client: HubClient, upstream: HubUpstream, name: str, tmp_path: Path) -> None:
    """A token of the upstream after the one of the server opens a private repository, in the variable that clients read."""
    reader = "hf_" + "a" * 34
    upstream.commit(name, {"config.json": b"{}"}, private=True, readers=frozenset({reader}))
    upstream.asked.clear()
    tokens = {"HF_TOKEN": f"{client.environ['HF_TOKEN']}~{reader}"}
    client.hf("download", name, "--local-dir", tmp_path / "here", environ=tokens)
    assert contents(tmp_path / "here") == {"config.json": b"{}"}
    assert {asked.authorization for asked in upstream.asked} == {None, f"Bearer {reader}"}


@by("1.19")
def test_the_list_of_files(client: HubClient, model: Path) -> None:
    """The client lists the same files as the upstream would."""
    assert sorted(contents(model)) == sorted(client.call("list_repo_files", repo_id=NAME))
