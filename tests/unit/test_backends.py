"""From a URL to a repository."""

from __future__ import annotations

import asyncio
import json
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from filestore import blocking
from filestore.backends import connect, create_repository, open_backend, repository_folder
from filestore.cache import Cache
from filestore.core.references import File
from filestore.errors import InvalidInput, InvalidUrl, NotARepository, ReadOnly, StorageError, UnknownFormat
from filestore.repository.protocol import Repository
from filestore.transfer.fetch import fetch
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.push import plan_push, push
from filestore_cli.hints import explained
from tests.support.frames import buffer_for, contents, encoded, frames, manifest


async def identity_id(url: str, *, create: bool = False) -> str:
    """The id of the repository at `url`."""
    async with connect(url, create=create) as repository:
        return (await repository.identity()).id


def tree(folder: Path) -> set[str]:
    """All that is below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


async def test_path_and_file_url_are_one_repository(tmp_path: Path) -> None:
    """Percent-encoded in the URL, plain in the path."""
    folder = tmp_path / "models ü 100%"
    first = await identity_id(str(folder), create=True)
    assert first == await identity_id(folder.as_uri())
    assert first == await identity_id(folder.as_uri().replace("file://", "file://localhost"))


async def test_location_is_the_folder(tmp_path: Path) -> None:
    """A result names the folder that it worked on."""
    async with connect((tmp_path / "models").as_uri(), create=True) as repository:
        assert str(tmp_path / "models") == repository.location


async def test_server_is_not_asked_before_it_is_needed() -> None:
    """A cache hit costs no network, though its repository is a server that is out of reach."""
    async with connect("http://127.0.0.1:9", token="secret") as repository:
        assert "http://127.0.0.1:9" == repository.location
        assert 64 == len(repository.fingerprint)


@pytest.mark.parametrize(
    "url", ["", "s3://bucket", "file://host/folder", "file:///folder?x", "file:///folder#x", "file://", "a\0b", "http://"]
)
async def test_url_that_names_no_repository(url: str) -> None:
    """Refused before anything is made."""
    with pytest.raises(InvalidUrl):
        await identity_id(url)


@pytest.mark.parametrize(
    "kept",
    [
        {"format": 2, "cutting": 1, "id": "0" * 32},
        {"format": 1, "cutting": 9, "id": "0" * 32},
        {"format": 1, "cutting": 1, "id": "no id"},
        {"format": 1},
        [],
        None,
    ],
    ids=["format", "cutting", "id", "parts", "list", "torn"],
)
async def test_repository_of_another_version_is_refused_and_not_touched(tmp_path: Path, kept: object) -> None:
    """In one sentence; neither an index is made in it nor its format file changed."""
    root = tmp_path / "repository"
    root.mkdir()
    text = "{" if kept is None else json.dumps(kept)
    (root / "format").write_text(text)
    with pytest.raises(UnknownFormat, match="this program knows"):
        await identity_id(str(root))
    assert text == (root / "format").read_text()
    assert {"format"} == {path.name for path in root.iterdir()}


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("localhost:8080", "http://localhost:8080"),
        ("models.example:80/", "http://models.example:80/"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("//models.example", "http://models.example"),
        ("//models.example:8080/", "http://models.example:8080/"),
        ("http:/models.example", "http://models.example"),
        ("https:models.example", "https://models.example"),
        ("HTTPS:/models.example", "https://models.example"),
        ("http:localhost:8080", "http://localhost:8080"),
        ("http//localhost:8080", "http://localhost:8080"),
        ("file:/srv/models", "file:///srv/models"),
    ],
)
@pytest.mark.parametrize("create", [False, True], ids=["", "create"])
async def test_mistyped_url_of_a_server_is_not_taken_for_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, meant: str, *, create: bool
) -> None:
    """Success in the wrong place: a URL that lost a part is refused with the one that was probably meant, and makes nothing."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidUrl) as caught:
        await identity_id(url, create=create)
    assert f"did you mean {meant!r}?" in str(caught.value)
    assert set() == tree(tmp_path)


@pytest.mark.parametrize("url", ["host:/srv/models", "s3:bucket", "user@host:8080", "http:"])
def test_name_that_looks_like_a_url_is_refused_with_the_path_that_means_it(url: str) -> None:
    """A name that may mean a URL is refused; the error gives a path that means the folder."""
    with pytest.raises(InvalidUrl, match="for the folder of that name, give"):
        repository_folder(url)
    assert Path(url) == repository_folder(f"./{url}")


@pytest.mark.parametrize("path", ["models", "./a:b", "/srv/a:b", "models/a:b", "..", "http", "https/models"])
def test_path_that_has_a_colon_only_where_paths_have_one(path: str) -> None:
    """A folder."""
    assert Path(path) == repository_folder(path)


def fill_nothing(_: Path) -> None:
    """No folder at all."""


def fill_empty(folder: Path) -> None:
    """An empty one, such as the place of a disk that is not mounted."""
    folder.mkdir()


def fill_formatted(folder: Path) -> None:
    """A new file system."""
    (folder / "lost+found").mkdir(parents=True)


def fill_half(folder: Path) -> None:
    """Leave what a killed process leaves that was making a repository."""
    own = folder / "tmp" / ("0" * 32)
    own.mkdir(parents=True)
    (own / "0").write_bytes(b"{")
    (folder / f"index.sqlite.{'0' * 16}").touch()


def fill_home(folder: Path) -> None:
    """Other things."""
    folder.mkdir()
    for number in range(5):
        (folder / f"thesis-{number}.txt").touch()


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (fill_nothing, "there is no such folder"),
        (fill_empty, "the folder is empty; mount the disk that belongs there, if one does"),
        (fill_formatted, "the folder is empty; mount the disk"),
        (fill_half, "was cut off before the end"),
        (fill_home, r"holds other things \('thesis-0.txt', 'thesis-1.txt', 'thesis-2.txt' and 2 more\)"),
    ],
)
@pytest.mark.parametrize("read_only", [False, True], ids=["", "read-only"])
async def test_folder_that_is_not_a_repository_is_not_made_one(
    tmp_path: Path, fill: Callable[[Path], None], said: str, *, read_only: bool
) -> None:
    """A folder with other content is refused and stays as it is; the error says what is there and what to do."""
    folder = tmp_path / "folder"
    fill(folder)
    before = tree(tmp_path)
    with pytest.raises(NotARepository, match=said):
        async with connect(str(folder), read_only=read_only):
            pass
    assert before == tree(tmp_path)


@pytest.mark.parametrize("fill", [fill_nothing, fill_empty, fill_formatted, fill_half])
async def test_new_or_empty_folder_becomes_a_repository_once(tmp_path: Path, fill: Callable[[Path], None]) -> None:
    """Only the call that made it says so. `lost+found` and what a crash left do not count as content."""
    folder = tmp_path / "below" / "folder"
    folder.parent.mkdir()
    fill(folder)
    assert await create_repository(folder)
    first = await identity_id(str(folder))
    assert not await create_repository(folder)
    assert first == await identity_id(str(folder), create=True)
    assert {"format", "index.sqlite", "last-commit", "tmp"} == tree(folder) - {"lost+found", f"index.sqlite.{'0' * 16}"}


async def test_folder_that_holds_other_things_never_becomes_a_repository(tmp_path: Path) -> None:
    """Success in the wrong place: nothing is scattered among them."""
    fill_home(tmp_path / "folder")
    before = tree(tmp_path)
    with pytest.raises(NotARepository, match="a new one is made in a new or an empty folder only"):
        await identity_id(str(tmp_path / "folder"), create=True)
    assert before == tree(tmp_path)


@pytest.mark.parametrize("lost", ["format", "index.sqlite"])
@pytest.mark.parametrize("create", [False, True], ids=["", "create"])
async def test_repository_that_lost_a_part_is_not_made_again(tmp_path: Path, lost: str, *, create: bool) -> None:
    """It is refused and not changed: a new repository in its place would hide the loss."""
    folder = tmp_path / "folder"
    async with connect(str(folder), create=True) as repository:
        await repository.put(frames(1))
    (folder / lost).unlink()
    before = tree(folder)
    with pytest.raises(NotARepository, match=r"holds other things \('chunks'\)|its index index.sqlite is missing") as caught:
        await identity_id(str(folder), create=create)
    if lost == "index.sqlite":
        assert (
            f"{folder} is not a repository: its index index.sqlite is missing, which holds the records and tokens"
            " of what is stored there; restore it from a backup, or repair the repository; `filestore restore` does it from a"
            " backup; without one, move the file away if it is damaged, and `filestore check --repair` finds the content again,"
            " but no names and tokens"
        ) == explained(caught.value)
    assert before == tree(folder)


async def test_index_that_left_its_log_was_lost(tmp_path: Path) -> None:
    """A process that was killed has left the log, which is there only where an index was: no other one is made."""
    assert await create_repository(tmp_path)
    (tmp_path / "index.sqlite").rename(tmp_path / "index.sqlite-wal")
    with pytest.raises(NotARepository, match=r"its index index\.sqlite is missing, which holds the records"):
        await identity_id(str(tmp_path), create=True)
    assert not (tmp_path / "index.sqlite").exists()


_FORMAT_ONLY = """
import asyncio, os, signal, sys
from pathlib import Path
from filestore.repository.format_file import read_format
from filestore.repository.stores.disk import open_store

async def make():
    await read_format(await open_store(Path(sys.argv[1])), location="there")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(make())
"""


@pytest.mark.slow
async def test_index_that_was_never_made_is_made_by_who_creates(tmp_path: Path) -> None:
    """Earlier versions made the format file first, and may have been killed before the index was there."""
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", _FORMAT_ONLY, tmp_path)
    assert -signal.SIGKILL == await killed.wait()
    assert {"format", "tmp"} == {path.name for path in tmp_path.iterdir()}
    kept = (tmp_path / "format").read_text()
    with pytest.raises(
        NotARepository, match=r"its index index\.sqlite is missing; .*; to begin with an empty one, connect with create=True"
    ):
        await identity_id(str(tmp_path))
    first = await identity_id(str(tmp_path), create=True)
    assert first == await identity_id(str(tmp_path)) == json.loads(kept)["id"]


_CREATE = """
import asyncio, sys
from pathlib import Path
from filestore.backends import create_repository, open_backend

async def create():
    made = await create_repository(Path(sys.argv[1]))
    store, index = await open_backend(Path(sys.argv[1]))
    await index.close()
    await store.close()
    print(made)

sys.stdin.read()
asyncio.run(create())
"""


@pytest.mark.slow
async def test_of_processes_that_create_at_once_one_does(tmp_path: Path) -> None:
    """All of them have a repository afterwards, and it is the same one."""
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", _CREATE, tmp_path / "folder", stdin=pipe, stdout=pipe)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    said = [(await process.communicate())[0] for process in processes]
    assert [b"False\n", b"False\n", b"False\n", b"True\n"] == sorted(said)


async def test_verbs_that_write_are_refused_where_it_was_opened_for_reading(tmp_path: Path) -> None:
    """Those that read answer, and the folder is as before."""
    async with connect(str(tmp_path), create=True) as repository:
        put = frames(2)
        await repository.put(put)
        record = await repository.commit(manifest(contents(2)).encoded, name="name")
    before = tree(tmp_path)
    async with connect(str(tmp_path), read_only=True) as repository:
        assert [record] == await repository.records()
        assert manifest(contents(2)).encoded == await repository.manifest(record.digest)
        digests = [frame.digest for frame in put]
        assert [] == await repository.missing(digests)
        assert [frame.data for frame in put] == await repository.get(digests, buffer_for(2))
        assert [] == await repository.verify_chunks(digests)
        for verb in (
            repository.put(frames(1, seed=1)),
            repository.commit(manifest(contents(2)).encoded, name="other"),
            repository.remove(record.id),
        ):
            with pytest.raises(ReadOnly):
                await verb
    assert before == tree(tmp_path)


async def test_damage_that_a_reader_finds_is_forgotten_where_it_may_write(tmp_path: Path) -> None:
    """So that the push that the error asks for sends the chunk again."""
    (content,) = contents(1)
    frame = encoded(content)
    async with connect(str(tmp_path), create=True) as repository:
        await repository.put([frame])
    (path,) = (path for path in (tmp_path / "chunks").rglob("*") if path.is_file())
    damaged = bytearray(frame.data)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    async with connect(str(tmp_path), read_only=True) as repository:
        assert [frame.digest] == await repository.verify_chunks([frame.digest])
        assert [frame.digest] == await repository.missing([frame.digest])


async def test_folder_that_is_a_file(tmp_path: Path) -> None:
    """Said with its path."""
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(StorageError, match=str(path)):
        await identity_id(str(path))


async def test_repository_is_closed_by_the_end_of_the_block(tmp_path: Path) -> None:
    """Also by an error in it; nothing stays in `tmp`."""

    async def fail() -> None:
        async with connect(str(tmp_path), create=True) as repository:
            assert await use(repository)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert [] == list((tmp_path / "tmp").iterdir())


async def use(repository: Repository) -> bool:
    """Whether it answers."""
    return [] == await repository.records()


async def test_opened_by_two_is_one_repository(tmp_path: Path) -> None:
    """Two processes share a folder: each finds what the other one stores."""
    (store, index), (other_store, other_index) = (
        await open_backend(tmp_path, create=True),
        await open_backend(tmp_path, create=True),
    )
    assert await store.initialise(b"") == await other_store.initialise(b"")
    for part in (store, index, other_store, other_index):
        await part.close()


async def test_a_tilde_in_a_program_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a repository and of a cache; the current folder gets none of that name."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "file").write_bytes(b"x")
    async with connect("~/repository", create=True) as repository, Cache("~/cache", repository) as cache:
        pushed = await push(repository, tmp_path / "file")
        assert (await cache.resolve(File(id=pushed.record.id))).is_relative_to(tmp_path / "home/cache")
    assert str(tmp_path / "home/repository") == repository.location
    assert [] == list((tmp_path / "here").iterdir())


async def test_connect_without_a_block_says_how_to_write_one(tmp_path: Path) -> None:
    """Whatever a program does with it: a verb, a transfer, a cache, `await`, or `with` without `async`."""
    path = tmp_path / "model.bin"
    path.write_bytes(b"x")
    unopened: Any = connect(tmp_path / "repository", create=True)

    async def use(way: str) -> None:
        if way == "await":
            await unopened
        elif way == "with":
            with unopened:
                pass
        elif way == "verb":
            await unopened.records()
        elif way == "push":
            await push(unopened, path)
        elif way == "fetch":
            await fetch(unopened, "model.bin", target=tmp_path / "back")
        else:
            Cache(tmp_path / "cache", unopened)

    said = "this call gives its value only to an `async with` block; write `async with filestore.connect(...) as repository:`"
    for way in ("await", "with", "verb", "push", "fetch", "cache"):
        with pytest.raises(InvalidInput) as caught:
            await use(way)
        assert (way, said) == (way, str(caught.value))
    assert not hasattr(unopened, "no_such_verb")
    assert not (tmp_path / "repository").exists()


async def test_lease_and_open_without_a_block_say_how_to_write_one(tmp_path: Path) -> None:
    """As `connect` does."""
    async with connect(tmp_path / "repository", create=True) as repository:
        cache: Any = Cache(tmp_path / "cache", repository)
        with pytest.raises(InvalidInput, match=r"write `async with cache\.lease\(\.\.\.\) as path:`"):
            cache.lease(File(id="file_" + "0" * 32)).read_text()
        with pytest.raises(InvalidInput, match=r"write `async with cache\.open\(\.\.\.\) as opened:`"):
            await cache.open(File(id="file_" + "0" * 32)).read(0, 1)


async def test_what_is_not_a_repository_is_refused(tmp_path: Path) -> None:
    """The error names the type, and what is expected."""
    url: Any = "http://127.0.0.1:8080"
    said = r"a value of the type str cannot be used as a repository here; give what `async with filestore\.connect"
    for use in (push(url, tmp_path), plan_push(url, tmp_path), fetch(url, "x", target="x"), fetch_tree(url, "x", target="x")):
        with pytest.raises(InvalidInput, match=said):
            await use
    with pytest.raises(InvalidInput, match=said):
        Cache(tmp_path, url)
    with blocking.connect(tmp_path / "repository", create=True) as theirs, pytest.raises(InvalidInput) as caught:
        Cache(tmp_path, cast("Any", theirs))
    assert str(caught.value).startswith("a value of the type filestore.blocking.Repository cannot be used as a repository here")


async def test_another_process_opens_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the folder was given as a relative path, and the program has gone to another one since."""
    monkeypatch.chdir(tmp_path)
    async with connect("repository", create=True) as repository:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        opening = repository.opening()
        assert opening is not None
        async with pickle.loads(pickle.dumps(opening)).open(share=2) as again:
            assert await repository.identity() == await again.identity()


async def test_how_to_open_a_server_does_not_show_the_token() -> None:
    """Another process gets it all the same."""
    async with connect("http://127.0.0.1:1", token="secret-token") as repository:
        opening = repository.opening()
        assert "secret" not in f"{opening} {opening!r}"
        assert b"secret-token" in pickle.dumps(opening)
