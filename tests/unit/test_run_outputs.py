from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import socket
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import pytest

from filestore.cache import Cache
from filestore.core.records import Kind
from filestore.core.references import Directory, File, FileURL
from filestore.errors import FilestoreError, InvalidName, InvalidSetting, NotFound, SourceChanged, SourceRefused, SourceUnreadable
from filestore.repository.protocol import Repository
from filestore.runtime import Adapter
from filestore.runtime.errors import InvalidRun
from filestore.runtime.outputs import Outputs
from filestore.transfer.push import push
from tests.support import sdk_values
from tests.support.cancels import cancelled_at_every_await
from tests.support.generator import octets
from tests.support.watched import WatchedRepository

URL = "http://models.example:8080"
CONTENT = b"what is in the file"


@pytest.fixture
def adapter(watched: WatchedRepository, tmp_path: Path) -> Adapter:
    """An adapter of a server at `URL`."""
    (tmp_path / "spool").mkdir()
    return Adapter(Cache(tmp_path / "cache", watched), watched, url=URL + "/", spool_folder=tmp_path / "spool")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file that a pipeline has made."""
    path = tmp_path / "image-0.jpg"
    path.write_bytes(CONTENT)
    return path


async def taken(adapter: Adapter, input_data: object, declared: list[object] | None = None, **options: Any) -> list[Any]:
    """The arguments of a run, whose files nothing removes afterwards."""
    async with adapter.inputs(input_data, declared, **options) as arguments:
        return arguments


async def stored(adapter: Adapter, value: object) -> dict[str, Any]:
    """Return how a returned file is reported."""
    (answer,) = json.loads(json.dumps(await adapter.outputs([value])))
    assert ("file", None, {"type", "value", "file"}) == (answer["type"], answer["value"], answer.keys())
    file: dict[str, Any] = answer["file"]
    assert {"name", "path", "url", "size"} == file.keys()
    return file


async def bytes_of(adapter: Adapter, file: dict[str, Any]) -> bytes:
    """Return the stored bytes of a returned file."""
    (path,) = await taken(adapter, [{"type": "file", "file_path": file["path"]}])
    assert isinstance(path, Path)
    return path.read_bytes()


async def test_the_documented_form(adapter: Adapter, image: Path) -> None:
    """Name, path by the record's id, signed URL, size."""
    file = await stored(adapter, File(image))
    assert ("image-0.jpg", len(CONTENT), CONTENT) == (file["name"], file["size"], await bytes_of(adapter, file))
    prefix, first, second, uuid, name = file["path"].split("/")
    assert ("run_files", uuid[:2], uuid[2:4], 36, "image-0.jpg") == (prefix, first, second, len(uuid), name)
    assert file["url"].startswith(f"{URL}/signed/default/")
    assert file["url"].endswith("/" + file["path"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        File,
        lambda path: File(str(path)),
        Path,
        lambda path: sdk_values.File(path=path),
        lambda path: path.open("rb"),
        lambda path: path.open("r+b"),
        lambda path: path.open("rb", buffering=0),
        lambda path: path.open(encoding="utf-8"),
        lambda path: path.open("ab"),
    ],
)
async def test_every_form_of_a_file(adapter: Adapter, image: Path, make: Callable[[Path], Any]) -> None:
    """A value of ours or theirs, a path, an open handle of any mode: the same bytes, under the same name."""
    before = image.stat()
    with ExitStack() as held:
        value = make(image)
        if isinstance(value, io.IOBase):
            held.enter_context(value)
        file = await stored(adapter, value)
    assert ("image-0.jpg", CONTENT) == (file["name"], await bytes_of(adapter, file))
    assert (before.st_size, before.st_mtime_ns) == (image.stat().st_size, image.stat().st_mtime_ns)


@pytest.mark.slow
@pytest.mark.parametrize("position", [0, 4, len(CONTENT), 100])
@pytest.mark.parametrize("kind", ["file", "text", "memory", "zip", "gzip", "spooled"])
async def test_a_handle_gives_all_of_it_and_stands_where_it_stood(
    adapter: Adapter, image: Path, tmp_path: Path, kind: str, position: int
) -> None:
    """Wherever that is: a pipeline that has just written its image into memory means all of it."""
    with ExitStack() as held:
        handle: IO[Any]
        if kind == "file":
            handle = held.enter_context(image.open("r+b"))
        elif kind == "text":
            handle = held.enter_context(image.open("r", encoding="utf-8"))
        elif kind == "memory":
            handle = io.BytesIO(CONTENT)
        elif kind == "zip":
            with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("inner", CONTENT)
            handle = held.enter_context(held.enter_context(zipfile.ZipFile(tmp_path / "a.zip")).open("inner"))
        elif kind == "gzip":
            (tmp_path / "a.gz").write_bytes(gzip.compress(CONTENT))
            handle = cast("IO[Any]", held.enter_context(gzip.GzipFile(tmp_path / "a.gz")))
        else:
            handle = held.enter_context(tempfile.SpooledTemporaryFile())
            handle.write(CONTENT)
        handle.seek(position)
        before = handle.tell()
        file = await stored(adapter, handle)
        assert before == handle.tell()
    assert CONTENT == await bytes_of(adapter, file)
    assert [] == list((tmp_path / "spool").iterdir())


async def test_a_run_that_is_cancelled_while_its_outputs_are_stored(
    adapter: Adapter, watched: WatchedRepository, image: Path, tmp_path: Path
) -> None:
    """After a cancel at any await, no file is open, a handle is where it was, and stored files are whole."""
    with image.open("rb") as handle:
        handle.seek(3)
        for place in Outputs([handle, io.BytesIO(CONTENT)]).places:
            await adapter._store(place)  # the repository opens its files with their first use
            before = len(list(Path("/proc/self/fd").iterdir()))
            # What `outputs` has a task of its own for: the task that is cancelled must be the one that waits.
            places = [number async for number in cancelled_at_every_await(partial(adapter._store, place))]
            assert 10 < len(places)
            assert before == len(list(Path("/proc/self/fd").iterdir()))
        assert 3 == handle.tell()
    assert [len(CONTENT)] * 2 == [record.size for record in await watched.records()]


@pytest.mark.slow
async def test_a_handle_that_is_returned_twice(adapter: Adapter, tmp_path: Path) -> None:
    """Gives all of it each time, although it is moved while it is copied."""
    content = octets(1, 3_000_000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(content, 1))
    with gzip.GzipFile(tmp_path / "a.gz") as handle:
        handle.seek(1000)
        answers: list[Any] = await adapter.outputs([handle] * 4)
        assert 1000 == handle.tell()
    assert 1 == len({answer["file"]["path"] for answer in answers})
    assert content == await bytes_of(adapter, answers[0]["file"])


async def test_what_a_handle_has_not_written_yet(adapter: Adapter, tmp_path: Path) -> None:
    """Belongs to it."""
    with (tmp_path / "log").open("wb") as binary, (tmp_path / "text").open("w", encoding="utf-8") as text:
        binary.write(b"buffered")
        text.write("buffered")
        for handle in (binary, text):
            assert b"buffered" == await bytes_of(adapter, await stored(adapter, handle))
        binary.write(b" more")
    assert b"buffered more" == (tmp_path / "log").read_bytes()


async def test_the_names_of_handles(adapter: Adapter, image: Path, tmp_path: Path) -> None:
    """It is the name of the file, or of the handle; otherwise it follows from the content."""
    named = io.BytesIO(CONTENT)
    named.name = "picture.png"  # as programs do
    with (
        image.open("rb") as opened,
        tempfile.NamedTemporaryFile(dir=tmp_path) as temporary,
        tempfile.TemporaryFile(dir=tmp_path) as nameless,
    ):
        temporary.write(CONTENT)
        returned = [opened, named, temporary, nameless, [io.BytesIO(b"1"), {"a/mask": io.BytesIO(b"2")}]]
        answers: list[Any] = await adapter.outputs(returned)
        expected = ["image-0.jpg", "picture.png", Path(temporary.name).name, "output-e3b0c44298fc1c14"]
    assert expected == [answer["file"]["name"] for answer in answers[:4]]
    first, second = answers[4]["value"]
    assert ("output-6b86b273ff34fce1", "output-d4735e3a265e16ee") == (first["file"]["name"], second["a/mask"]["file"]["name"])


async def test_equal_outputs_are_one_record(adapter: Adapter, watched: WatchedRepository, tmp_path: Path) -> None:
    """Also if they are stored at the same time, in one run or in two. Under two names, the content is stored once."""
    for name in ("a/same.bin", "b/same.bin", "another.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(octets(1, 3_000_000))
    returned = [Path(tmp_path / "a/same.bin"), Path(tmp_path / "b/same.bin"), io.BytesIO(CONTENT), io.BytesIO(CONTENT)]
    runs: Any = await asyncio.gather(adapter.outputs(returned), adapter.outputs([tmp_path / "another.bin", *returned]))
    paths = [[answer["file"]["path"] for answer in answers] for answers in runs]

    assert paths[0] == paths[1][1:]
    assert paths[0][0::2] == paths[0][1::2]
    records = await watched.records()
    assert {"same.bin": 3_000_000, "another.bin": 3_000_000, paths[0][2].rpartition("/")[2]: len(CONTENT)} == {
        record.name: record.size for record in records
    }
    assert 3 == len(records)
    assert 2 == len({record.digest for record in records})


async def test_names_that_no_new_record_gets(adapter: Adapter, tmp_path: Path) -> None:
    """A file or a folder that a pipeline returns is stored with `_` in place of `@` and `:`: the run's result is not lost."""
    (tmp_path / "12:30@noon.png").write_bytes(CONTENT)
    (tmp_path / "at 12:30").mkdir()
    named = io.BytesIO(CONTENT)
    named.name = "memory:1.png"  # as programs do
    with (tmp_path / "12:30@noon.png").open("rb") as opened:
        answers: list[Any] = await adapter.outputs([tmp_path / "12:30@noon.png", Directory(tmp_path / "at 12:30"), opened, named])
    expected = ["12_30_noon.png", "at 12_30.zip", "12_30_noon.png", "memory_1.png"]
    assert expected == [answer["file"]["name"] for answer in answers]


async def test_lists_of_files(adapter: Adapter, tmp_path: Path) -> None:
    """An array whose value is the files."""
    paths = [tmp_path / f"image-{number}.jpg" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(number + 1))
    for make in (list, tuple):
        (answer,) = await adapter.outputs([make(File(path) for path in paths)])
        assert ("array", None) == (answer["type"], answer["file"])
        value: Any = answer["value"]
        assert [("file", None, path.name) for path in paths] == [
            (each["type"], each["value"], each["file"]["name"]) for each in value
        ]
        assert [1, 2, 3] == [each["file"]["size"] for each in value]


@pytest.mark.slow
@pytest.mark.parametrize("make", [Directory, Path, lambda path: sdk_values.Directory(path=path)])
async def test_directories(adapter: Adapter, tmp_path: Path, watched: WatchedRepository, make: Callable[[Path], Any]) -> None:
    """A file that is a zip, which unpacks to the folder again."""
    (tmp_path / "results/empty").mkdir(parents=True)
    (tmp_path / "results/a").write_bytes(CONTENT)
    file = await stored(adapter, make(tmp_path / "results"))
    assert "results.zip" == file["name"]
    (tree,) = await taken(adapter, [{"type": "file", "file_path": file["path"]}], [Directory])
    assert isinstance(tree, Path)
    assert ["a", "empty"] == sorted(path.name for path in tree.iterdir())
    (record,) = await watched.records()
    assert Kind.DIRECTORY == record.kind


async def test_what_is_stored_already_is_not_stored_again(adapter: Adapter, watched: WatchedRepository, image: Path) -> None:
    """Named by its id, its digest or a path of the repository."""
    record = (await push(watched, image)).record
    watched.calls.clear()
    for value in (File(id=record.id), File(digest=str(record.digest)), File(record.path), File(record.run_path)):
        assert record.run_path == (await stored(adapter, value))["path"]
    assert {"record", "sign"} == set(watched.calls)


async def test_a_local_folder_that_is_called_as_ours(adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pipeline writes there is a local file."""
    monkeypatch.chdir(tmp_path)
    Path("run_files").mkdir()
    Path("run_files/out.txt").write_bytes(CONTENT)
    assert CONTENT == await bytes_of(adapter, await stored(adapter, File("run_files/out.txt")))


async def test_plain_values(adapter: Adapter) -> None:
    """Each with its type, nested ones as they are."""
    returned = [None, True, 3, 1.5, "text", [1, "two", None, [True]], (1, 2), {"a": {"b": [1.5]}}]
    types = ["none", "boolean", "integer", "fp", "string", "array", "array", "dictionary"]
    values = [*returned[:6], [1, 2], returned[7]]
    expected = [{"type": name, "value": value, "file": None} for name, value in zip(types, values, strict=True)]
    assert expected == await adapter.outputs(returned)
    assert [] == await adapter.outputs([])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "outputs[1] of the run cannot be used: it is of type object"),
        ({1, 2}, "it is of type set"),
        (b"bytes", "it is of type bytes"),
        (float("nan"), "it is the number nan"),
        ([1, [float("inf")]], "outputs[1][1][0] of the run cannot be used: it is the number inf"),
        ({1: 2}, "its key 1 is not a text"),
        ({"a": [object()]}, "outputs[1]['a'][0] of the run"),
        (File(url="http://host.example/a"), "it is given by a URL"),
        (FileURL("http://host.example/a"), "it is given by a URL"),
        (sdk_values.File(url="http://host.example/a"), "it is given by a URL"),
        (sdk_values.File(), "its path is empty"),
    ],
)
async def test_what_cannot_be_returned(
    adapter: Adapter, watched: WatchedRepository, image: Path, value: object, said: str
) -> None:
    """Is said before anything is stored."""
    with pytest.raises(InvalidRun) as refused:
        await adapter.outputs([File(image), value])
    assert said in str(refused.value)
    assert [] == watched.calls


async def test_an_output_without_end(adapter: Adapter) -> None:
    """A list that holds itself."""
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(InvalidRun, match="levels deep"):
        await adapter.outputs([endless])


def closed() -> IO[Any]:
    """A handle that the pipeline has closed."""
    handle = io.BytesIO(CONTENT)
    handle.close()
    return handle


class Stream(io.RawIOBase):
    """A stream that can be read once, and never ends."""

    def readable(self) -> bool:
        return True

    def readinto(self, memory: Any) -> int:
        return len(memory)


class Broken(io.RawIOBase):
    """A handle whose device has failed."""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return 3

    def seek(self, offset: int, _: int = 0) -> int:
        return offset

    def readinto(self, _: Any) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (closed, InvalidRun, "outputs[1] of the run cannot be used: it is closed"),
        (lambda: io.StringIO("text"), InvalidRun, "holds text; return a BytesIO"),
        (Stream, InvalidRun, "it cannot be read from its start"),
        (Broken, SourceUnreadable, "Input/output error"),
    ],
)
async def test_handles_that_give_nothing(
    adapter: Adapter,
    watched: WatchedRepository,
    image: Path,
    *,
    make: Callable[[], IO[Any]],
    error: type[FilestoreError],
    said: str,
) -> None:
    """One sentence, no record, and no wait."""
    with pytest.raises(error) as refused:
        await adapter.outputs([image, make()] if error is InvalidRun else [make()])
    assert said in str(refused.value)
    assert "commit" not in watched.calls


async def test_a_pipe_is_not_waited_for(adapter: Adapter, tmp_path: Path) -> None:
    """By its handle or its path."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as handle, pytest.raises(SourceUnreadable, match="not a regular file"):
        await adapter.outputs([handle])
    os.close(writer)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceUnreadable, match="not a regular file"):
        await adapter.outputs([tmp_path / "fifo"])


async def test_outputs_that_are_not_there_any_more(adapter: Adapter, watched: WatchedRepository, tmp_path: Path) -> None:
    """A file, a folder, a stored file: each is named, and nothing is recorded of it."""
    for value, error, said in (
        (tmp_path / "gone", SourceUnreadable, "gone cannot be read: No such file"),
        (File("gone"), SourceUnreadable, "gone cannot be read: No such file"),
        (Directory(tmp_path / "gone"), SourceRefused, "is not a folder"),
        (File(id="file_" + "0" * 32), NotFound, "nothing is stored under"),
    ):
        with pytest.raises(error, match=said):
            await adapter.outputs([value])
    assert "commit" not in watched.calls


async def test_an_output_that_vanishes_while_it_is_stored(adapter: Adapter, watched: WatchedRepository, tmp_path: Path) -> None:
    """An open file is stored whole. A file that becomes shorter is named in the error, and not recorded."""
    path = tmp_path / "vanishing.bin"
    path.write_bytes(os.urandom(3 << 20))

    async def vanish(verb: str) -> None:
        if verb == "put":
            os.truncate(path, 1000)

    watched.before = vanish
    with pytest.raises(SourceChanged, match=r"vanishing\.bin changed"):
        await adapter.outputs([path])
    assert [] == await watched.records()


async def test_a_handle_that_is_written_to_meanwhile(adapter: Adapter, watched: WatchedRepository, tmp_path: Path) -> None:
    """Its error has its own name."""
    with (tmp_path / "growing.bin").open("w+b") as handle:
        handle.write(os.urandom(3 << 20))

        async def grow(verb: str) -> None:
            if verb == "put":
                handle.write(b"more")
                handle.flush()

        watched.before = grow
        with pytest.raises(SourceChanged, match=r"the handle 'growing\.bin' changed"):
            await adapter.outputs([handle])
    assert [] == await watched.records()


async def test_a_folder_with_a_socket_in_it(adapter: Adapter, watched: WatchedRepository, tmp_path: Path) -> None:
    """Is refused by its name, and nothing of the folder is recorded."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_bytes(CONTENT)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "d/socket"))
        with pytest.raises(SourceRefused, match="socket was refused"):
            await adapter.outputs([Directory(tmp_path / "d")])
    assert [] == await watched.records()


async def test_a_name_that_cannot_be_kept(adapter: Adapter, tmp_path: Path) -> None:
    """Is refused by its name."""
    (tmp_path / "a\nb").write_bytes(CONTENT)
    with pytest.raises(InvalidName):
        await adapter.outputs([tmp_path / "a\nb"])


async def test_a_full_spool_folder(watched: WatchedRepository, tmp_path: Path) -> None:
    """A returned file in memory does not fit: there is one error, and nothing is recorded."""
    adapter = Adapter(Cache(tmp_path / "cache", watched), watched, url=URL, spool_folder=tmp_path / "nowhere")
    with pytest.raises(FilestoreError, match="nowhere"):
        await adapter.outputs([io.BytesIO(CONTENT)])
    assert [] == await watched.records()


async def test_a_repository_in_a_folder_needs_a_url(local_repository: Repository, image: Path, tmp_path: Path) -> None:
    """Where a file is returned, and only there."""
    adapter = Adapter(Cache(tmp_path / "cache", local_repository), local_repository)
    assert [{"type": "integer", "value": 1, "file": None}] == await adapter.outputs([1])
    with pytest.raises(InvalidSetting, match="give the URL of a server"):
        await adapter.outputs([File(image)])
    assert [] == await local_repository.records()


async def test_the_same_bytes_under_the_same_name_are_one_file(adapter: Adapter, image: Path) -> None:
    """A path and an open file with the same content and name are one stored file."""
    with image.open("rb") as handle:
        first, second = await stored(adapter, image), await stored(adapter, handle)
    assert first["path"] == second["path"]
