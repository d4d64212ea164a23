"""A real server computes SHA-256 and git's blob id of what is pushed to it, and of what is pushed into its folder."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.transfer.push import push
from tests.support.generator import octets
from tests.support.secondary_digests import digests_of, pushed
from tests.support.server import RunningServer, eventually, running_server
from tests.support.tls import client_of
from tests.support.trees import Planted

MIB = 1 << 20
CONTENT = octets(1, 5 * MIB)
TREE: dict[str, Planted] = {"model.bin": CONTENT}


def kept(root: Path) -> set[bytes]:
    """The digests of all trees and files that the index has."""
    with closing(sqlite3.connect(root / "index.sqlite")) as connection:
        trees = {row[0] for row in connection.execute("SELECT content FROM tree_digests")}
        files = connection.execute("SELECT sha256, blob_id FROM content_digests WHERE digest = source")
        return trees | {sha256 + blob_id for sha256, blob_id in files}


def metrics(server: RunningServer) -> tuple[float, ...]:
    """The bytes that were read, and how much waits."""
    shown = server.ask("GET", "/metrics").body.decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in shown if not line.startswith("#"))
    return tuple(float(values[f"filestore_{name}"]) for name in ("digested_bytes_total", "digests_waiting"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_what_is_pushed_to_a_server(tmp_path: Path, workers: int) -> None:
    """A tree and a file, soon after the push. The server then stops without an error."""
    root = tmp_path / "root"
    other = octets(2, MIB)
    (tmp_path / "other").write_bytes(other)
    with running_server(root, workers=workers) as server:
        async with client_of(server.port, "http", token=server.token) as repository:
            await pushed(repository, tmp_path / "tree", TREE, name="team/tree")
            await push(repository, tmp_path / "other", name="team/other.bin")
            await pushed(repository, tmp_path / "plain", {"a": b"a"}, name="plain")
            wanted = {digests_of(CONTENT).packed, digests_of(other).packed}
            eventually(lambda: kept(root) == wanted)
            eventually(lambda: (6 * MIB, 0) == metrics(server))


@pytest.mark.slow
async def test_what_a_hub_client_asks_for(tmp_path: Path) -> None:
    """A name without an owner has digests soon after the first question, whether it is a tree or a file."""
    (tmp_path / "file").write_bytes(CONTENT)
    with running_server(tmp_path / "root") as server:
        async with client_of(server.port, "http", token=server.token) as repository:
            await pushed(repository, tmp_path / "tree", {"a/b.txt": b"a"}, name="plain")
            await push(repository, tmp_path / "file", name="file.bin")

        def shown(name: str) -> object:
            answer = server.ask("GET", f"/api/models/{name}/tree/main?recursive=true", token=server.token)
            (file,) = [entry for entry in answer.json if entry["type"] == "file"]
            return file["lfs"]["oid"] if "lfs" in file else file["oid"]

        eventually(lambda: shown("plain") == digests_of(b"a").blob_id.hex())
        eventually(lambda: shown("file.bin") == digests_of(CONTENT).sha256.hex())


@pytest.mark.slow
async def test_what_is_stored_while_no_server_runs(tmp_path: Path) -> None:
    """The next server finds it by itself."""
    root = tmp_path / "root"
    async with connect(root, create=True) as repository:
        await pushed(repository, tmp_path / "tree", TREE, name="team/tree")
    with running_server(root):
        eventually(lambda: kept(root) == {digests_of(CONTENT).packed})
