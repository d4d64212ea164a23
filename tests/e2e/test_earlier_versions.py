"""What an earlier version wrote is used by this one. `tests/golden/repositories/make.py` says how each archive was made."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from filestore.backends import connect, open_backend
from filestore.cache import Cache, verify_cache
from filestore.core.references import Directory, File
from filestore.errors import NotFound, Unreachable
from filestore.repository.index.sqlite import SCHEMA_VERSION
from filestore.repository.maintenance.check import ReadPlan, check
from filestore.repository.maintenance.findings import AffectedFile
from filestore.repository.protocol import Repository
from filestore.transfer.fetch import fetch
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.push import push
from filestore.transfer.sources.push_cache import PushCache
from tests.golden.repositories.make import FILES, PARTS, RUNTIME_TOKEN, TREE
from tests.support.commands import Home
from tests.support.runtimes import running_runtime
from tests.support.server import SECONDS
from tests.support.trees import Folder, Planted, Script, plant, standing

ARCHIVES = Path(__file__).parents[1] / "golden/repositories"
SCHEMA_VERSIONS = {"1423cff": 2, "495f52f": 3, "bcc56b1": 4, "0a995fe": 5, "adfedc8": 6}
"""The commit that wrote each archive, and the schema version of its index."""


THINGS: dict[str, Planted] = {**TREE, "run.sh": Script(TREE["run.sh"]), "empty": Folder()}
"""The directory that was pushed."""


class Earlier:
    """The unpacked archive of one earlier version."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.cache = folder / "cache"
        self.push_cache = folder / "journal.sqlite"
        self.facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Repository]:
        """Open its repository."""
        async with connect(self.root) as repository:
            yield repository

    def id(self, name: str) -> str:
        """Return the id that the record of a pushed file had."""
        return str(self.facts["records"][name]["id"])


@pytest.fixture(params=SCHEMA_VERSIONS)
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Earlier:
    """What each earlier version wrote, with the times of the last changes."""
    folder = tmp_path / "earlier"
    with tarfile.open(ARCHIVES / f"{request.param}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
        for member in reversed(archive.getmembers()):  # a folder after what is in it
            # A float, as tarfile itself uses, has not all digits.
            changed_at = int(member.pax_headers["mtime"].replace(".", ""))
            os.utime(folder / member.name, ns=(changed_at, changed_at))
    return Earlier(folder)


def test_every_schema_version_has_an_archive() -> None:
    """A new version of the schema needs the archive of a commit that wrote the version before."""
    assert set(range(2, SCHEMA_VERSION + 1)) <= {*SCHEMA_VERSIONS.values(), SCHEMA_VERSION}
    assert {f"{commit}.tar.gz" for commit in SCHEMA_VERSIONS} == {path.name for path in ARCHIVES.glob("*.tar.gz")}


async def test_records_are_those_of_the_earlier_version(earlier: Earlier) -> None:
    """Each has its id, digest, times and path; what was removed is not there."""
    async with earlier.opened() as repository:
        records = {record.name: record for record in await repository.records()}
        pushed = earlier.facts["records"]
        graph = earlier.facts["pipeline"]["path"].rpartition("/")[2]
        assert {*pushed, "uploaded.txt"} == records.keys() - {graph}
        for name, facts in pushed.items():
            found = records[name].as_json()
            same = found.keys() & facts.keys()
            assert {"id", "digest", "size", "created_at", "updated_at"} <= same
            assert {key: facts[key] for key in same} == {key: found[key] for key in same}
        assert records["lines.txt"].digest == records["lines-again.txt"].digest
        assert earlier.facts["uploaded"]["id"] == records["uploaded.txt"].id
        with pytest.raises(NotFound):
            await repository.record(earlier.facts["removed"])


async def test_every_byte_is_fetched(earlier: Earlier, tmp_path: Path) -> None:
    """By id and by name, files and the tree, also what the Pipeline SDK had uploaded."""
    async with earlier.opened() as repository:
        for name, content in {**FILES, "uploaded.txt": b"".join(PARTS)}.items():
            assert content == (await fetch(repository, name, target=tmp_path / name)).path.read_bytes()
        tree = await fetch_tree(repository, File(id=earlier.id("tree.zip")), target=tmp_path / "tree")
        assert THINGS == standing(tree.path)


async def test_a_check_finds_nothing_and_gives_frames_their_digests(earlier: Earlier) -> None:
    """The index is checked before and after its migration. A read keeps a digest of each frame that is encoded."""
    store, index = await open_backend(earlier.root, read_only=True)
    assert [] == [each async for each in check(store, index, writes=False) if isinstance(each, AffectedFile) or each.is_damage]
    await index.close()
    await store.close()
    store, index = await open_backend(earlier.root)
    assert [] == [each async for each in check(store, index, read=ReadPlan()) if isinstance(each, AffectedFile) or each.is_damage]
    rows = [state.row for state in await index.chunk_rows("default", limit=1000)]
    assert {True, False} == {row.frame_digest is None for row in rows}
    await index.close()
    await store.close()


async def test_a_push_of_the_same_sends_nothing(earlier: Earlier, tmp_path: Path) -> None:
    """Chunks, frames and digests are the same, and so each push gives the record that is there."""
    async with earlier.opened() as repository:
        for name, content in FILES.items():
            (tmp_path / name).write_bytes(content)
            pushed = await push(repository, tmp_path / name)
            assert (0, earlier.id(name)) == (pushed.bytes_sent, pushed.record.id)
        pushed = await push(repository, plant(tmp_path / "tree", THINGS))
        assert (0, earlier.id("tree.zip")) == (pushed.bytes_sent, pushed.record.id)


async def test_a_push_cache_knows_what_was_pushed(earlier: Earlier) -> None:
    """It has the manifest of each path that was pushed to this repository."""
    async with earlier.opened() as repository:
        identity = await repository.identity()
    with PushCache(earlier.push_cache) as push_cache:
        for name in FILES:
            found = push_cache.find(identity, Path(earlier.facts["source"], name))
            assert found is not None
            assert earlier.facts["records"][name]["digest"] == str(found.manifest.digest)


async def test_a_cache_is_used_without_its_server(earlier: Earlier) -> None:
    """Every entry is a hit and sound, and the server, which no longer runs, is not asked."""
    url, token = earlier.facts["url"], earlier.facts["token"]
    async with connect(url, token=token) as repository, Cache(earlier.cache, repository) as cache:
        for name, content in FILES.items():
            resolved = await cache.resolved(File(id=earlier.id(name)))
            assert (True, content) == (resolved.was_cached, resolved.path.read_bytes())
        tree = await cache.resolve(Directory(id=earlier.id("tree.zip")))
        assert THINGS == standing(tree)
        with pytest.raises(Unreachable):
            await repository.records()
    assert [] == await verify_cache(earlier.cache)


async def test_entries_are_seeds(earlier: Earlier, tmp_path: Path) -> None:
    """A new tree takes the chunks of a file from the entry of that file."""
    things: dict[str, Planted] = {"lines.txt": FILES["lines.txt"], "more.txt": b"more"}
    async with earlier.opened() as repository, Cache(earlier.cache, repository) as cache:
        record = (await push(repository, plant(tmp_path / "tree", things))).record
        resolved = await cache.resolved(record)
        assert things == standing(resolved.path)
        assert len(FILES["lines.txt"]) <= resolved.bytes_reused


@pytest.mark.slow
async def test_a_server_accepts_its_tokens_and_finishes_its_uploads(earlier: Earlier, home: Home, tmp_path: Path) -> None:
    """Each token sees its namespace; an upload in parts that was begun before goes on."""
    for path in earlier.root.glob("uploads-*/*"):
        os.utime(path)  # an upload that was not used for a day is removed
    with home.server(root=earlier.root) as server:
        other, ids = earlier.facts["other"], earlier.facts["unfinished"]
        async with connect(server.url, token=other["token"]) as repository:
            assert [other["record"]["id"]] == [record.id for record in await repository.records()]
        headers = {"Authorization": f"Bearer {earlier.facts['token']}", "Content-Type": "application/json"}
        asked = json.dumps(ids | {"multipart_metadata": earlier.facts["unfinished_tags"]})
        connection = HTTPConnection(urlsplit(server.url).netloc, timeout=SECONDS)
        connection.request("POST", "/v3/pipeline_files/finalise-multipart-upload", asked, headers)
        answer = connection.getresponse()
        assert 201 == answer.status, answer.read()
        file_id = json.loads(answer.read())["id"]
        connection.close()
        async with connect(server.url, token=earlier.facts["token"]) as repository:
            fetched = await fetch(repository, File(id=file_id), target=tmp_path / "unfinished.txt")
            assert ("unfinished.txt", PARTS[0]) == (fetched.path.name, fetched.path.read_bytes())
            assert "unfinished.txt" == (await repository.record(file_id)).name


@pytest.mark.slow
def test_a_runtime_runs_its_pipelines(earlier: Earlier, user: Home) -> None:
    """By the id and by the name that they had."""
    with running_runtime(user, earlier.root, environ={"FILESTORE_TOKEN": RUNTIME_TOKEN}) as runtime:
        for pipeline in (earlier.facts["pipeline"]["id"], "doubler"):
            assert 42 == runtime.value(pipeline, {"type": "integer", "value": 21})
