"""What the SDK and its storage do badly in uploads and downloads, one test each, numbered as in the contract with the SDK."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest

import filestore
from tests.support.commands import SCRIPTS, Home, Server
from tests.support.generator import octets
from tests.support.process_memory import peak_growth
from tests.support.server import RunningServer, running_server
from tests.support.trees import Folder, Script, plant, standing
from tests.support.uploads import PARTS, PartsUpload

MIB = 1 << 20
SIZE = 300 * MIB
PART_SIZE = 100 * MIB
PUSHES = 96 * MIB
"""What a server process has for pushing what was uploaded, beside its memory limit."""
REST = 24 * MIB
"""What a process may need beside that: connections, threads, the index, what the allocator keeps."""
CLIENT = 200 * MIB

MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.fixture
def server(home: Home, tmp_path: Path) -> Iterator[Server]:
    """The server of the commands."""
    with home.server(root=tmp_path / "root") as server:
        home.environ |= server.environ
        yield server


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    """A file as large as that of the SDK's measurements. Its content repeats, so that it is cheap."""
    block = octets(1, 60 * MIB + 12345)
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        for start in range(0, SIZE, len(block)):
            file.write(block[: SIZE - start])
    return path


def curl(server: RunningServer, *arguments: str | Path) -> None:
    """Run curl to its end, with a token; it must succeed."""
    token = f"Authorization: Bearer {server.token}"
    subprocess.run(["curl", "-sSf", "-o", "/dev/null", "-H", token, *arguments], check=True, timeout=100)


def upload_by_parts(server: RunningServer, path: Path) -> None:
    """Each part by curl, out of a pipe."""
    upload = PartsUpload(server, path.name)
    sent = []
    for start in range(0, SIZE, PART_SIZE):
        number = start // PART_SIZE + 1
        url = upload.url(number).json["upload_url"]
        command = f'tail -c +{start + 1} "$0" | head -c {PART_SIZE} | curl -sSf -o /dev/null -D - -T - "$1"'
        head = subprocess.run(["bash", "-c", command, path, url], check=True, capture_output=True, text=True, timeout=100).stdout
        (tag,) = [line.partition(":")[2].strip() for line in head.splitlines() if line.lower().startswith("etag:")]
        sent.append({"ETag": tag, "PartNumber": number})
    assert 201 == upload.finish_with(sent).status


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
def test_1_memory_of_a_server(tmp_path: Path, large_file: Path) -> None:
    """It stays below the size of the file, for every dialect and for a download, with every limit."""
    with running_server(tmp_path / "root", memory_limit=16 * MIB) as server:
        ways: dict[str, Any] = {
            "form v3": lambda: curl(server, "-F", f"pfile=@{large_file}", f"{server.url}/v3/pipeline_files"),
            "form v4": lambda: curl(server, "-F", f"pfile=@{large_file}", f"{server.url}/v4/files"),
            "parts": lambda: upload_by_parts(server, large_file),
            "download": lambda: curl(server, f"{server.url}{PARTS}/download/{server.ask('GET', PARTS).json[0]['id']}"),
        }
        grown = {}
        for way, go in ways.items():
            with peak_growth(server.pid) as growth:
                go()
            grown[way] = growth()
        assert 1 == len(server.ask("GET", PARTS).json)
    assert {} == {way: size // MIB for way, size in grown.items() if size > 16 * MIB + PUSHES + REST}


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
def test_1_memory_of_a_client(home: Home, server: Server, large_file: Path) -> None:
    """The whole program needs less memory than the size of the file, for a push and a fetch."""
    for arguments in (("push", large_file), ("fetch", "large.bin", "--output", "copy.bin")):
        # By way of a small process: a new one counts the memory of whoever started it as its own.
        measured = home.run("-c", MEASURED, SCRIPTS / "filestore", *arguments, program=sys.executable)
        assert int(measured.stdout.splitlines()[-1]) << 10 < CLIENT, arguments
    assert 0 == subprocess.run(["cmp", large_file, home.folder / "copy.bin"], check=False).returncode


@pytest.mark.slow
def test_2_a_broken_download_leaves_what_was_there(tmp_path: Path, home: Home) -> None:
    """This holds for our client. No other client gets a short file that looks complete."""
    with running_server(tmp_path / "root", check=False) as server:
        record = server.upload("model.bin", octets(2, 5_000_000)).json
        frame = max((server.root / "chunks").rglob("*"), key=lambda path: path.stat().st_size)
        with frame.open("r+b") as file:
            file.seek(-1000, os.SEEK_END)
            file.write(bytes(100))
        (home.folder / "model.bin").write_bytes(b"the old one")
        home.environ |= {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": server.token}
        assert "is damaged in the repository" in home.failure("fetch", record["id"], "-o", "model.bin", "--quiet")
        assert b"the old one" == (home.folder / "model.bin").read_bytes()
        with suppress(IncompleteRead, ConnectionError):
            assert 500 == server.ask("GET", f"{PARTS}/download/{record['id']}").status


@pytest.mark.slow
def test_3_what_is_not_there_is_not_a_file(home: Home, server: Server) -> None:
    """There is one message, and nothing is written. The digest of a stored file is known before."""
    (home.folder / "my_file.txt").write_bytes(b"content")
    record = home.result("push", "my_file.txt")
    assert home.result("hash", "my_file.txt")["digest"] == record["digest"]
    home.result("rm", record["id"])
    assert "nothing is stored under" in home.failure("fetch", record["id"], "--output", "new.txt")
    assert not (home.folder / "new.txt").exists()


@pytest.mark.slow
def test_4_the_same_bytes_are_one_file_and_one_transfer(home: Home, server: Server) -> None:
    """This holds for every name, and every order."""
    (home.folder / "a.bin").write_bytes(octets(4, 3_000_000))
    first = home.result("push", "a.bin")
    again = home.result("push", "a.bin", "--rehash")
    other = home.result("push", "a.bin", "--name", "b.bin", "--rehash")
    assert [0, 0] == [again["bytes_sent"], other["bytes_sent"]]
    assert (first["id"], first["digest"]) == (again["id"], other["digest"])


@pytest.mark.slow
def test_5_a_directory_stays_what_it_is(home: Home, server: Server, tmp_path: Path) -> None:
    """No two entries become one, empty folders stay, no time is too early, and nothing is left in the temporary folder."""
    folder = plant(home.folder / "my_dir", {"a/x": b"one", "b/x": b"two", "empty": Folder(), "old": b"as the epoch"})
    os.utime(folder / "old", (0, 0))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environ = {"TMPDIR": str(temporary)}
    created = home.run("create", "file", "-r", "my_dir", environ=environ)
    assert 0 == created.returncode, created.stderr
    home.result("fetch", created.stdout.split()[-1], "--output", "again", environ=environ)
    assert standing(folder) == standing(home.folder / "again")
    assert [] == list(temporary.iterdir())
    refused = home.run("create", "file", "-r", "my_dir/old")
    assert (1, "") == (refused.returncode, refused.stdout)


@pytest.mark.slow
def test_9_names_do_not_collide(home: Home, server: Server) -> None:
    """A path holds the whole digest of its content."""
    records = []
    for content in (b"one", b"two"):
        (home.folder / "same.txt").write_bytes(content)
        records.append(home.result("push", "same.txt"))
    assert 2 == len({record["path"] for record in records})
    for record, content in zip(records, (b"one", b"two"), strict=True):
        home.result("fetch", record["path"], "--output", "fetched.txt")
        assert content == (home.folder / "fetched.txt").read_bytes()


@pytest.mark.slow
def test_10_nothing_is_read_without_a_token(tmp_path: Path) -> None:
    """And with one, no path of the server's machine."""
    with running_server(tmp_path / "root") as server:
        record = server.upload("secret.bin", b"content").json
        for path in (f"/{record['path']}", f"{PARTS}/download/{record['id']}", f"{PARTS}/{record['id']}", PARTS):
            assert 401 == server.ask("GET", path, token=None).status
        for path in (
            "/etc/passwd",
            f"{PARTS}/download//etc/passwd",
            f"{PARTS}/download/..%2f..%2fetc%2fpasswd",
            "/../../etc/passwd",
        ):
            assert 404 == server.ask("GET", path).status


@pytest.mark.slow
def test_10_what_an_archive_unpacks_to_is_limited(home: Home, server: Server) -> None:
    """An archive with too many entries is refused. Executable files stay executable."""
    folder = plant(home.folder / "my_dir", {"run.sh": Script(b"#!/bin/sh\n"), "data": b"data"})
    record = home.result("push", "my_dir")
    assert "FILESTORE_ZIP_ENTRIES" in home.failure(
        "fetch", record["id"], "--output", "again", environ={"FILESTORE_ZIP_ENTRIES": "1"}
    )
    home.result("fetch", record["id"], "--output", "again")
    assert standing(folder) == standing(home.folder / "again")


def test_11_a_file_takes_its_path_as_the_documentation_writes_it() -> None:
    """By place, and by keyword."""
    for made in (filestore.File, filestore.Directory):
        assert made("my_file.txt") == made(path="my_file.txt")
