"""An upstream that lies, stalls, cuts, redirects to other machines, or answers something else; and callers that want too much."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from filestore.backends import open_backend
from filestore.core.digest import token_digest
from filestore.core.names import UPSTREAM_NAMESPACE
from filestore.errors import UpstreamFailed
from filestore.upstream.answers import HELD_SIZE
from filestore.upstream.listing import checked_path, kept_listing, parse_listing
from tests.support.commands import Home
from tests.support.hub_upstream import Behaviour, HubUpstream, running_hub
from tests.support.server import TOKEN, RunningServer, running_server

MIB = 1 << 20
READER = "hf_" + "a" * 34
BIG = random.Random(20).randbytes(2 * MIB)
SMALL = b"small"
COMMIT = "0" * 40
LFS_WITHOUT_DIGEST: tuple[object, ...] = ({}, [], {"sha256": COMMIT, "size": 1}, {"sha256": "Z" * 64})
PATH = "/team/m/resolve/main/"


@pytest.fixture
def hub() -> Iterator[HubUpstream]:
    """A Hub with a large and a small file."""
    with running_hub() as running:
        running.commit("team/m", {"big": BIG, "small": SMALL})
        yield running


@pytest.fixture
def server(hub: HubUpstream, tmp_path: Path) -> Iterator[RunningServer]:
    """A server with this upstream, which it asks once, and does not wait for very long."""
    limits = {"upstream_retry_seconds": 0, "upstream_stall_seconds": 5}
    with running_server(tmp_path / "r", check=False, upstream_url=hub.url, **limits) as running:
        yield running


def _is_cut(server: RunningServer, path: str) -> bool:
    """Whether the answer is an error, or ends before the size that it states, and has nothing of its last 64 KiB."""
    with server.begin("GET", path) as connection:
        answer = HTTPResponse(connection)
        answer.begin()
        if answer.status == 502:
            return True
        size = int(answer.headers["Content-Length"])
        try:
            return len(answer.read()) < 0
        except IncompleteRead as error:
            return len(error.partial) <= size - (64 << 10)
        except ConnectionResetError:
            return True


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, MIB, len(BIG) - 1])
def test_other_bytes_of_the_stated_size(hub: HubUpstream, server: RunningServer, tmp_path: Path, place: int) -> None:
    """No client gets a whole answer with a wrong byte, and nothing of the file is kept."""
    wrong = bytearray(BIG)
    wrong[place] ^= 1
    hub.behaviours["big"] = Behaviour(content=bytes(wrong))
    assert _is_cut(server, f"{PATH}big")
    assert list((tmp_path / "r" / "upstream" / "incoming").iterdir()) == []
    hub.behaviours.clear()
    assert server.ask("GET", f"{PATH}big").body == BIG


@pytest.mark.slow
@pytest.mark.parametrize("part", [f"{len(BIG) - 100}-", "-1", f"{len(BIG) - HELD_SIZE}-{len(BIG) - HELD_SIZE}"])
def test_a_range_of_other_bytes(hub: HubUpstream, server: RunningServer, part: str) -> None:
    """Ranges of the end wait for the digest of the whole file, so a wrong one is an error, and nobody gets all of its parts."""
    hub.behaviours["big"] = Behaviour(content=b"!" + BIG[1:])
    answer = server.ask("GET", f"{PATH}big", headers={"Range": f"bytes={part}"})
    assert (answer.status, answer.slug) == (502, "upstream-failed")
    # The file is fetched again from its beginning, and so is what a client asks for next.
    hub.behaviours.clear()
    assert server.ask("GET", f"{PATH}big").body == BIG


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"SMALL", SMALL + b"!", SMALL[:-1], b""])
def test_a_small_file_that_is_another_one(hub: HubUpstream, server: RunningServer, content: bytes) -> None:
    """A small file is verified before its answer begins."""
    hub.behaviours["small"] = Behaviour(content=content)
    answer = server.ask("GET", f"{PATH}small")
    assert (answer.status, answer.slug) == (502, "upstream-failed")
    assert b"SMALL" not in answer.body


@pytest.mark.slow
@pytest.mark.parametrize("content", [BIG + b"!", BIG[:-1], BIG * 3])
def test_another_size_than_the_stated_one(hub: HubUpstream, server: RunningServer, content: bytes) -> None:
    """A file that is longer or shorter than it says is not served as whole."""
    hub.behaviours["big"] = Behaviour(content=content)
    answer = server.ask("GET", f"{PATH}big", headers={"Range": "bytes=0-9"})
    assert (answer.status, answer.slug) == (502, "upstream-failed")


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", [Behaviour(html=True), Behaviour(status=500), Behaviour(status=204)])
def test_a_page_in_place_of_the_description(hub: HubUpstream, server: RunningServer, behaviour: Behaviour) -> None:
    """What is not the description of a repository is an error of the upstream, and clients use their caches."""
    hub.behaviours["/api/models/team/m/revision/main"] = behaviour
    answer = server.ask("GET", f"{PATH}small")
    assert (answer.status, answer.slug) == (502, "upstream-failed")


def test_a_page_in_place_of_a_file(hub: HubUpstream, server: RunningServer) -> None:
    """A page is not served as a file."""
    hub.behaviours["small"] = hub.behaviours["big"] = Behaviour(html=True)
    for name in ("small", "big"):
        answer = server.ask("GET", PATH + name, headers={"Range": "bytes=0-1"})
        assert (answer.status, answer.slug) == (502, "upstream-failed")


@pytest.mark.slow
def test_an_upstream_that_stalls(hub: HubUpstream, server: RunningServer) -> None:
    """The answers to clients end, and the next request continues."""
    hub.behaviours["big"] = Behaviour(hang_at=MIB)
    assert _is_cut(server, f"{PATH}big")
    hub.go_on.set()
    assert server.ask("GET", f"{PATH}big").body == BIG
    assert hub.sent["big"] <= 1.1 * len(BIG)


def test_an_upstream_that_cuts(hub: HubUpstream, tmp_path: Path) -> None:
    """A download that is cut continues behind the last byte that arrived."""
    hub.behaviours["big"] = Behaviour(cut_at=MIB)
    with running_server(tmp_path / "r", upstream_url=hub.url) as server:
        assert server.ask("GET", f"{PATH}big").body == BIG
    assert hub.sent["big"] == len(BIG)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.2", "10.1.2.3", "169.254.169.254", "[::1]", "0x7f000003"])
def test_redirects_to_addresses_that_are_not_public(hub: HubUpstream, server: RunningServer, host: str) -> None:
    """A redirect leads only to public addresses, and to the one that the upstream was configured at."""
    hub.behaviours["small"] = Behaviour(redirect=f"http://{host}:9/small")
    answer = server.ask("GET", f"{PATH}small")
    assert (answer.status, answer.slug) == (502, "upstream-failed")
    assert "public" in answer.json["reason"] or "resolve" in answer.json["reason"].lower()


def test_a_redirect_to_a_file_of_this_machine(hub: HubUpstream, server: RunningServer) -> None:
    """Only http and https are followed."""
    hub.behaviours["small"] = Behaviour(redirect="file:///etc/passwd")
    assert server.ask("GET", f"{PATH}small").slug == "upstream-failed"


def test_a_digest_of_a_private_file(hub: HubUpstream, server: RunningServer) -> None:
    """Whoever knows the digest of a private file does not get it by a repository of his own that states the digest."""
    hub.commit("team/p", {"big": BIG}, private=True, readers=frozenset({READER}))
    sent = {"X-Upstream-Authorization": f"Bearer {READER}"}
    assert server.ask("GET", "/team/p/resolve/main/big", headers=sent).body == BIG
    hub.behaviours["big"] = Behaviour(status=404)
    assert server.ask("GET", f"{PATH}big").headers["X-Error-Code"] == "EntryNotFound"


def test_a_token_of_ours_as_one_of_the_upstream(hub: HubUpstream, server: RunningServer) -> None:
    """The token of this server opens nothing at the upstream, because it is not sent there."""
    hub.commit("team/p", {"big": BIG}, private=True, readers=frozenset({TOKEN}))
    assert server.ask("GET", "/team/p/resolve/main/big").headers["X-Error-Code"] == "RepoNotFound"
    assert {asked.authorization for asked in hub.asked} == {None}


@pytest.mark.slow
async def test_a_token_for_the_namespace_of_the_upstream(tmp_path: Path) -> None:
    """It would open what was fetched for others. The command makes none, and a server accepts none."""
    home = Home(tmp_path)
    with home.local_server() as server:
        done = home.run("token", "new", "--namespace", UPSTREAM_NAMESPACE)
        assert (2, True) == (done.returncode, "no token opens it" in done.stderr)
        store, index = await open_backend(home.data)
        async with index.transaction() as transaction:
            await transaction.add_token(token_digest(READER), namespace=UPSTREAM_NAMESPACE, label="")
        await index.close()
        await store.close()
        environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": READER}
        assert "token" in home.failure("ls", environ=environ)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["hf_x", "Basic hf_x", "Bearer hf x", "Bearer " + "x" * 600, "Bearer \x7f"])
def test_malformed_tokens(hub: HubUpstream, server: RunningServer, value: str) -> None:
    """A malformed header is the caller's mistake, and nothing of it goes to the upstream."""
    assert server.ask("GET", f"{PATH}small", headers={"X-Upstream-Authorization": value}).status == 400
    assert hub.asked == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        "..%2F..%2Fapi/x/resolve/main/a",
        "team/..%2Fm/resolve/main/a",
        "team/m/resolve/..%2F..%2Fx/a",
        "team/m/resolve/main/..%2Fa",
    ],
)
def test_names_that_escape(hub: HubUpstream, server: RunningServer, place: str) -> None:
    """Names, revisions and paths with dots are refused here, or are one quoted part of the upstream's URL."""
    assert server.ask("GET", f"/{place}").status == 404
    assert all("/../" not in asked.path and "%2F..%2F" not in asked.path.replace("..%2F..%2Fx", "") for asked in hub.asked)


def _description(**changes: Any) -> bytes:
    values = {"sha": COMMIT, "private": False, "gated": False, "siblings": [_sibling()]}
    return json.dumps(values | changes).encode()


def _sibling(**changes: Any) -> dict[str, Any]:
    return {"rfilename": "a", "size": 1, "blobId": COMMIT, **changes}


@pytest.mark.parametrize(
    "document",
    [
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"sha": 1e999}',
        _description(sha="main"),
        _description(sha="A" * 40),
        _description(siblings={}),
        _description(siblings=[_sibling(), _sibling()]),
        _description(siblings=[_sibling(), _sibling(rfilename="a/b")]),
        *[
            _description(siblings=[_sibling(rfilename=path)])
            for path in ("", "/a", "a/../b", "..", "a//b", "a\\b", "a\nb", "x" * 1025, None, 7)
        ],
        *[_description(siblings=[_sibling(size=size)]) for size in (-1, 1.5, True, None, "1", 1 << 60)],
        *[_description(siblings=[_sibling(blobId=digest)]) for digest in (None, "b3-" + COMMIT, COMMIT.replace("0", "G"), 5)],
        *[_description(siblings=[_sibling(lfs=lfs)]) for lfs in LFS_WITHOUT_DIGEST],
    ],
)
def test_descriptions_that_no_hub_sends(document: bytes) -> None:
    """A description that is not right in each part that counts is refused as a whole."""
    with pytest.raises(UpstreamFailed):
        parse_listing("team/m", document)


def test_a_description_that_does_not_say_who_may_read() -> None:
    """A repository counts as private unless the upstream says that it is not."""
    listing = parse_listing("team/m", json.dumps({"sha": COMMIT, "siblings": [_sibling()]}).encode())
    assert not listing.is_open
    assert kept_listing(listing.as_json()) == listing


def test_paths_of_files() -> None:
    """Names with dots inside are paths."""
    assert [checked_path(path) for path in ("a", "a/..b/c.", ".git", "ä")] == ["a", "a/..b/c.", ".git", "ä"]
