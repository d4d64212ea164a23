"""References and names, as a user meets them: real commands and real servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from filestore.backends import connect, open_backend
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Kind, Record
from filestore.transfer.push import push
from tests.support.commands import Home
from tests.support.server import FORM, Reply, RunningServer, form, running_server
from tests.support.uploads import PARTS

CONTENT = b"what is in the file"
OLD_NAME = "12:30@noon.png"
WITH_ENTRIES: list[tuple[str, ...]] = [("fetch",), ("info",), ("ls",), ("cache", "warm")]
"""The commands that take a path inside a directory."""
OF_RECORDS: list[tuple[str, ...]] = [("rm",)]
"""Those that take a reference without such a path."""
NO_ENTRY = "it has a path inside a directory; here a whole file or directory is needed, without the ':'"


async def store_under_old_name(root: Path, source: Path) -> Record:
    """A record in the repository at `root` with a name that no new record gets, as earlier versions made them."""
    async with connect(str(root)) as repository:
        pushed = (await push(repository, source)).record
        await repository.remove(pushed.id)
    store, index = await open_backend(root)
    try:
        async with index.transaction() as transaction:
            return await transaction.add_record(
                DEFAULT_NAMESPACE, name=OLD_NAME, digest=pushed.digest, size=pushed.size, kind=Kind.FILE
            )
    finally:
        await store.close()
        await index.close()


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
@pytest.mark.parametrize("way", ["folder", "server"])
async def test_an_older_record_stays_reachable(home: Home, tmp_path: Path, way: str) -> None:
    """It is reachable by id, digest and stored path. For its name alone, the error says what to do."""
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    record = await store_under_old_name(home.data, source)
    if way == "folder":
        check_older_record(home, record, {})
        return
    with home.local_server() as server:
        check_older_record(home, record, server.environ)


def check_older_record(home: Home, record: Record, environ: dict[str, str]) -> None:
    """List, show, fetch, cache and remove it."""
    assert [record.as_json()] == home.result("ls", environ=environ)["files"]
    for number, reference in enumerate([record.id, str(record.digest), record.path, record.run_path]):
        assert record.name == home.result("info", reference, environ=environ)["name"]
        target = home.folder / str(number)
        home.result("fetch", reference, "-o", target, "--quiet", environ=environ)
        assert CONTENT == target.read_bytes()
        (cached,) = home.result("cache", "warm", reference, "--quiet", environ=environ)["files"]
        assert OLD_NAME == Path(cached["path"]).name
    for command in WITH_ENTRIES:
        assert "nothing is stored under '12'" in home.failure(*command, OLD_NAME, environ=environ)
    for command in OF_RECORDS:
        assert NO_ENTRY in home.failure(*command, OLD_NAME, environ=environ)
    assert [[OLD_NAME]] == [entry["names"] for entry in home.result("cache", "ls")["entries"]]
    assert "removed" in home.run("cache", "rm", OLD_NAME).stdout
    assert record.id == home.result("rm", record.id, environ=environ)["removed"][0]["id"]
    assert [] == home.result("ls", environ=environ)["files"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [("push",), ("create", "file")])
def test_a_push_refuses_a_name_with_a_separator(home: Home, tmp_path: Path, command: tuple[str, ...]) -> None:
    """The file's own name or that of --name; the error says how to choose another one, and nothing is stored."""
    source = tmp_path / OLD_NAME
    source.write_bytes(CONTENT)
    sentence = home.failure(*command, source)
    assert "it contains ':', which separates the parts of a reference" in sentence
    assert sentence.endswith("choose another name; --name sets it")
    sentence = home.failure(*command, source, "--name", "a@b")
    assert "it contains '@', which separates the parts of a reference" in sentence
    assert sentence.endswith("choose another name; --name sets it")
    assert [] == home.result("ls")["files"]
    assert "12_30.png" == home.result(*command, source, "--name", "12_30.png", "--quiet")["name"]


@pytest.mark.slow
def test_a_folder_may_hold_such_names(home: Home, tmp_path: Path) -> None:
    """Only the name of the record itself must be free of separators."""
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b" / OLD_NAME).write_bytes(CONTENT)
    assert "'a:b.zip' cannot be kept" in home.failure("push", tmp_path / "a:b")
    home.result("push", tmp_path / "a:b", "--name", "ab.zip", "--quiet")
    home.result("fetch", "ab.zip", "-o", home.folder / "tree", "--quiet")
    assert CONTENT == (home.folder / "tree" / OLD_NAME).read_bytes()


@pytest.mark.slow
def test_every_command_reads_every_part(home: Home, tmp_path: Path) -> None:
    """An owner, a revision and a path are understood, so that the errors are about what is stored."""
    (tmp_path / "m").write_bytes(CONTENT)
    home.result("push", tmp_path / "m", "--create")
    for command in (*WITH_ENTRIES, *OF_RECORDS):
        assert "nothing is stored under 'team/my_model'" in home.failure(*command, "team/my_model")
        assert "'m' has no version 'v2'" in home.failure(*command, "m@v2")
    for command in WITH_ENTRIES:
        assert "it is a single file and not a directory, so it has no entries" in home.failure(*command, "m:a/b")
    for command in OF_RECORDS:
        assert NO_ENTRY in home.failure(*command, "m:a/b")


@pytest.mark.slow
def test_rm_removes_no_entry_of_a_directory(home: Home, tmp_path: Path) -> None:
    """A path inside a directory is refused, and the directory stays."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m/a").write_bytes(CONTENT)
    record = home.result("push", tmp_path / "m", "--name", "team/m")
    for path in ("a", ""):
        assert "it has a path inside a directory" in home.failure("rm", f"team/m:{path}")
    assert [record["id"]] == [each["id"] for each in home.result("ls")["files"]]


def by_alias(server: RunningServer, name: str) -> Reply:
    """The alias of a form, as the SDK's --name sends it."""
    return server.upload("plain.bin", CONTENT, query=f"?name={quote(name)}")


def by_field(server: RunningServer, name: str) -> Reply:
    """The alias as a part of the form, after the file."""
    return server.ask("POST", "/v3/pipeline_files", form("plain.bin", CONTENT, after={"name": name}), headers=FORM)


def by_form(server: RunningServer, name: str) -> Reply:
    """The file's name in a form."""
    return server.upload(name, CONTENT)


def by_form_v4(server: RunningServer, name: str) -> Reply:
    """The same in version 2."""
    return server.ask("POST", "/v4/files", form(name, CONTENT), headers=FORM)


def by_parts(server: RunningServer, name: str) -> Reply:
    """The beginning of an upload in parts."""
    return server.ask("POST", f"{PARTS}/initiate-multipart-upload", json.dumps({"name": name}).encode())


def by_record(server: RunningServer, name: str) -> Reply:
    """A commit, as our own client sends it."""
    return server.ask("POST", "/native/v1/files", b"", headers={"Filestore-Name": quote(name)})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a:b.txt", "a@b.txt"])
@pytest.mark.parametrize("way", [by_alias, by_field, by_form, by_form_v4, by_parts, by_record])
def test_a_server_refuses_a_new_name_with_a_separator(
    tmp_path: Path, way: Callable[[RunningServer, str], Reply], name: str
) -> None:
    """Wherever a record gets its name; `detail`, which the Pipeline SDK shows, gives the reason, and nothing is stored."""
    with running_server(tmp_path / "root") as server:
        answer = way(server, name)
        assert 400 == answer.status
        assert f"it contains '{name[1]}', which separates the parts of a reference" in answer.json["detail"]
        assert [] == server.ask("GET", "/v3/pipeline_files").json
