"""The commands gc and namespace, on a folder that a server serves meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filestore.backends import open_backend
from filestore.repository.index.protocol import Use
from tests.support.commands import Home, Server
from tests.support.server import SECONDS

SIZE = 300_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that does not collect by itself."""
    folder = tmp_path_factory.mktemp("served")
    home = Home(folder)
    with home.server(root=folder / "root", environ={"FILESTORE_GC_RATE": "0"}) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, server: Server) -> Home:
    """A user of that server, who may also read its folder."""
    home = Home(tmp_path)
    home.environ |= server.environ
    return home


def content(seed: int) -> bytes:
    """Return the content of a file, which cannot be compressed."""
    return random.Random(seed).randbytes(SIZE)


def push(home: Home, name: str, seed: int, *, token: str | None = None) -> Any:
    """Store a file."""
    path = home.folder / name
    path.write_bytes(content(seed))
    return home.result("push", path, environ={} if token is None else {"FILESTORE_TOKEN": token})


def frames(root: Path, namespace: str = "default") -> list[Path]:
    """Return the frames of a repository."""
    return files_below(root / "chunks" / namespace)


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder. A collection may remove folders meanwhile, which `glob` does not permit."""
    return sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names)


@pytest.mark.slow
def test_space_of_removed_files_is_freed_while_a_server_serves(home: Home, server: Server, tmp_path: Path) -> None:
    """The report says what goes and why. A dry run removes nothing. Other files are fetched as before."""
    kept, removed = push(home, "kept.bin", 1), push(home, "removed.bin", 2)
    home.run("rm", removed["id"])
    before = frames(server.root)

    planned = home.result("gc", "--dry-run", "--grace", "0s", "--root", server.root)
    assert before == frames(server.root)
    done = home.result("gc", "--grace", "0", "--root", server.root)

    assert (True, False) == (planned.pop("dry_run"), done.pop("dry_run"))
    assert planned == done
    (report,) = done["namespaces"]
    assert ("default", True) == (report["namespace"], report["is_complete"])
    assert SIZE <= report["removed_files"]["size"] < done["freed_size"]
    assert 1 == report["manifests"]["count"]
    assert [] == done["failures"]
    assert len(before) - report["removed_files"]["count"] == len(frames(server.root)) > 0
    home.result("fetch", kept["id"], "-o", tmp_path / "fetched")
    assert content(1) == (tmp_path / "fetched").read_bytes()
    assert 0 == home.result("gc", "--grace", "0s", "--root", server.root)["freed_size"]


@pytest.mark.slow
def test_the_grace_period_is_a_setting(home: Home, server: Server) -> None:
    """It is a day by default. What waits is named for a person too."""
    removed = push(home, "waiting.bin", 3)
    home.run("rm", removed["id"])
    said = home.run("gc", "--root", server.root).stdout
    assert "kept for the grace period" in said
    assert f"0 B freed in {server.root}\n" in said
    said = home.run("gc", "--root", server.root, environ={"FILESTORE_GC_GRACE": "0s"}).stdout
    assert "content of removed files" in said


def test_the_url_of_a_server_is_refused(home: Home, server: Server) -> None:
    """The sentence says where to run the command. A folder may also be named by its URL."""
    said = home.failure("gc")
    assert f"gc works on the folder of a repository, and {server.url} is the URL of a server; run it on the machine" in said
    assert str(server.root) == home.result("gc", "--url", f"file://{server.root}", "--dry-run")["root"]
    assert 2 == home.run("gc", "--grace", "soon", "--root", server.root).returncode


def test_what_has_lost_its_name_is_held(home: Home, tmp_path: Path) -> None:
    """Repair, check and a dry run say so; gc refuses, says why and what to do, and ends the hold only if it is told to."""
    root = tmp_path / "root"
    home.create_repository(root)
    path = tmp_path / "only.bin"
    path.write_bytes(content(7))
    home.result("push", path, environ={"FILESTORE_URL": str(root)})
    before = frames(root)
    for index in root.glob("index.sqlite*"):
        index.unlink()
    in_root = ("--grace", "0s", "--root", root)

    assert "1 manifest had no record" in home.run("check", "--repair", "--root", root).stdout
    assert "filestore gc --end-hold" in home.run("check", "--root", root).stdout
    (held,) = home.result("gc", "--dry-run", *in_root)["held"]
    assert ("default", 1) == (held["namespace"], held["manifest_count"])
    refused = home.run("gc", *in_root)
    said = refused.stderr
    assert 1 == refused.returncode
    assert "its index index.sqlite is missing" in said
    assert "`filestore gc --end-hold` ends it" in said
    assert before == frames(root)
    assert home.result("gc", "--end-hold", *in_root)["holds_ended"]
    assert [] == frames(root)


def test_a_damaged_manifest_is_named(home: Home, tmp_path: Path) -> None:
    """Nothing is removed from its namespace, and the exit status says so."""
    root = tmp_path / "root"
    home.create_repository(root)
    here = {"FILESTORE_URL": str(root)}
    path = tmp_path / "damaged.bin"
    path.write_bytes(content(4))
    record = home.result("push", path, environ=here)
    for manifest in root.glob("manifests/default/*/*/*"):
        os.truncate(manifest, 10)
    done = home.run("gc", "--grace", "0s", "--json", environ=here)
    assert 1 == done.returncode
    assert f"nothing is removed from the namespace default: the record {record['id']} ('damaged.bin') is damaged" in done.stderr
    assert ["default"] == [failure["namespace"] for failure in json.loads(done.stdout)["failures"]]
    assert frames(root)


@pytest.mark.slow
def test_a_server_collects_by_itself(tmp_path: Path) -> None:
    """Also with several processes. It keeps what is stored, and stops at once while it collects."""
    home, root = Home(tmp_path), tmp_path / "root"
    with home.server("--workers", "2", root=root, environ={"FILESTORE_GC_GRACE": "0s"}) as server:
        home.environ |= server.environ
        kept, removed = push(home, "kept.bin", 5), push(home, "removed.bin", 6)
        count = len(frames(root))
        home.run("rm", removed["id"])
        deadline = time.monotonic() + SECONDS
        while len(frames(root)) >= count or len(files_below(root / "manifests")) > 1:
            assert time.monotonic() < deadline
            os.sched_yield()
        home.result("fetch", kept["id"], "-o", tmp_path / "fetched")
        assert content(5) == (tmp_path / "fetched").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
def test_a_namespace_is_limited_and_removed(home: Home, server: Server) -> None:
    """Its records and tokens go, its content at the next collection, and nothing of another namespace."""
    token = home.result("token", "new", "--namespace", "team", "--root", server.root)["token"]
    for seed in range(10, 13):
        push(home, "model.bin", seed, token=token)
    others = frames(server.root)
    root = ("--root", server.root)
    assert {"keep_last": None, "older_than_seconds": None} == policy_of(home, server)
    home.result("namespace", "policy", "team", "--keep-last", "2", "--older-than", "0s", *root)
    assert {"keep_last": 2, "older_than_seconds": 0} == policy_of(home, server)
    (team,) = [row for row in home.result("namespace", "ls", *root)["namespaces"] if row["namespace"] == "team"]
    assert (3, 1) == (team["records"], team["tokens"])
    reports = home.result("gc", "--grace", "0s", *root)["namespaces"]
    assert [1] == [report["old_versions"] for report in reports if report["namespace"] == "team"]
    home.result("namespace", "policy", "team", "--off", *root)
    assert {"keep_last": None, "older_than_seconds": None} == policy_of(home, server)

    said = home.failure("namespace", "rm", "team", *root)
    assert "nothing was removed; to remove 2 records and 1 token of the namespace team" in said
    assert "does not exist" in home.failure("namespace", "rm", "teams", "--yes", *root)
    removed = home.result("namespace", "rm", "team", "--yes", *root)
    assert (2, 1) == (removed["records"], removed["tokens"])
    home.result("gc", "--grace", "0s", *root)
    assert [] == frames(server.root, "team")
    assert others == frames(server.root)
    assert "team" not in [row["namespace"] for row in home.result("namespace", "ls", *root)["namespaces"]]


def policy_of(home: Home, server: Server) -> Any:
    """Return the policy of the namespace of this test."""
    found = home.result("namespace", "policy", "team", "--root", server.root)
    return {name: found[name] for name in ("keep_last", "older_than_seconds")}


def test_a_namespace_with_pipelines_needs_force(home: Home, tmp_path: Path) -> None:
    """The command names a pipeline, and removes nothing."""
    root = tmp_path / "root"
    home.create_repository(root)
    path = tmp_path / "used.bin"
    path.write_bytes(content(20))
    record = home.result("push", path, environ={"FILESTORE_URL": str(root)})

    async def use() -> None:
        store, index = await open_backend(root)
        async with index.transaction() as transaction:
            await transaction.add_uses("default", [Use(record["id"], "p", "doubler:v1")])
        await index.close()
        await store.close()

    asyncio.run(use())
    said = home.failure("namespace", "rm", "default", "--yes", "--root", root)
    assert "doubler:v1" in said
    assert 1 == home.result("namespace", "rm", "default", "--yes", "--force", "--root", root)["records"]
