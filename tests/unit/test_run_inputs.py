from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest

from filestore.backends import connect
from filestore.cache import Cache
from filestore.cache.options import CacheOptions
from filestore.core.records import Kind, Record
from filestore.core.references import Directory, File, FileURL
from filestore.errors import CacheFull, NotAnArchive, NotFound
from filestore.runtime import Adapter
from filestore.runtime.errors import InvalidRun
from filestore.runtime.inputs import DEPTH_LIMIT
from filestore.transfer.push import push
from tests.support import sdk_values
from tests.support.watched import WatchedRepository

URL = "http://models.example:8080"
CONTENT = b"what is in the file"


@pytest.fixture
async def file(watched: WatchedRepository, tmp_path: Path) -> Record:
    """A file in it."""
    (tmp_path / "my file.txt").write_bytes(CONTENT)
    return (await push(watched, tmp_path / "my file.txt")).record


@pytest.fixture
async def directory(watched: WatchedRepository, tmp_path: Path) -> Record:
    """A directory in it."""
    (tmp_path / "my_model").mkdir()
    (tmp_path / "my_model/weights").write_bytes(CONTENT)
    return (await push(watched, tmp_path / "my_model")).record


@pytest.fixture
def adapter(watched: WatchedRepository, tmp_path: Path) -> Adapter:
    """An adapter of a server at `URL`."""
    return Adapter(Cache(tmp_path / "cache", watched), watched, url=URL)


def given(record: Record, **members: object) -> dict[str, object]:
    """A file of a run, as version 3 sends it."""
    return {"type": "file", "value": None, "file_name": record.name, "file_path": f"/{record.path}"} | members


async def taken(adapter: Adapter, input_data: object, declared: list[object] | None = None, **options: Any) -> list[Any]:
    """The arguments of a run, whose files nothing removes afterwards."""
    async with adapter.inputs(input_data, declared, **options) as arguments:
        return arguments


async def refusal(adapter: Adapter, input_data: object, declared: list[object] | None = None) -> str:
    """The sentence in which a run is refused."""
    with pytest.raises(InvalidRun) as refused:
        await taken(adapter, input_data, declared)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert len(sentence) < 400
    return sentence


async def test_every_form_of_a_file(adapter: Adapter, file: Record, watched: WatchedRepository) -> None:
    """By its content, by its record, of either version, and by the URLs of our own server, signed or not: one local path."""
    signed = f"{URL}/{await watched.sign(file.id)}"
    forms = [
        given(file),
        given(file, file_path=file.path),
        given(file, file_path=file.run_path),
        given(file, file_path=f"/{file.run_path}", file_url=None),
        given(file, file_url="http://elsewhere.example/my_file.txt"),
        given(file, file_path=None, file_url=signed),
        given(file, file_path=signed),
        given(file, file_path=f"{URL}//{file.path.replace(' ', '%20')}"),
        given(file, type="pkl"),
        {"type": "file", "file_path": file.path},
    ]
    arguments = await taken(adapter, forms)
    (path,) = set(arguments)
    assert isinstance(path, Path)
    assert ("my file.txt", CONTENT) == (path.name, path.read_bytes())
    assert 1 == watched.calls.count("manifest")


@pytest.mark.slow
@pytest.mark.parametrize("declared", [Directory, sdk_values.Directory, Directory | None])
async def test_a_directory_is_unpacked_where_one_is_declared(adapter: Adapter, directory: Record, declared: object) -> None:
    """And is the zip file that it is where a file is, or nothing."""
    tree, zip_file, undeclared = await taken(adapter, [given(directory)] * 3, [declared, File, None])
    assert isinstance(tree, Path)
    assert ("my_model", CONTENT) == (tree.name, (tree / "weights").read_bytes())
    assert zip_file == undeclared
    assert isinstance(zip_file, Path)
    assert ("my_model.zip", b"PK") == (zip_file.name, zip_file.read_bytes()[:2])


async def test_plain_values_pass(adapter: Adapter) -> None:
    """Of each type, also those that the SDK names wrongly."""
    sent: list[tuple[str, object]] = [
        ("integer", 3),
        ("integer", True),
        ("fp", 1.5),
        ("fp", 2),
        ("string", "text"),
        ("string", "pipeline_files/no/file"),
        ("boolean", False),
        ("none", None),
        ("dictionary", {"type": "file", "a": [1, {"b": None}]}),
        ("array", [1, "two", [3.0]]),
        ("pkl", [1, 2]),
        ("pkl", None),
    ]
    input_data = [{"type": name, "value": value, "file_name": None, "file_path": None, "file_url": None} for name, value in sent]
    assert [value for _, value in sent] == await taken(adapter, input_data)
    assert [] == await taken(adapter, [])


async def test_nested_files(adapter: Adapter, file: Record, directory: Record) -> None:
    """In dictionaries, arrays and both, declared or not; the request itself stays as it is."""
    input_data = [
        {"type": "array", "value": [given(file), given(file)]},
        {"type": "dictionary", "value": {"image": given(file), "deep": [{"model": given(directory)}], "size": 3}},
        {"type": "dictionary", "value": {"model": given(directory)}},
        {"type": "pkl", "value": {"image": given(file)}},
    ]
    before = copy.deepcopy(input_data)
    arguments: list[Any] = await taken(adapter, input_data, [list[File], dict, dict[str, Directory], None])
    path = arguments[0][0]
    assert CONTENT == path.read_bytes()
    assert [path, path] == arguments[0]
    assert (path, "my_model.zip", 3) == (arguments[1]["image"], arguments[1]["deep"][0]["model"].name, arguments[1]["size"])
    assert CONTENT == (arguments[2]["model"] / "weights").read_bytes()
    assert {"image": path} == arguments[3]
    assert before == input_data


async def test_a_class_of_inputs(adapter: Adapter, file: Record, directory: Record) -> None:
    """Annotations say what is a file, and its kind. Optional values may be missing or None."""

    class Mine(sdk_values.InputSchema):
        image: sdk_values.File | None
        model: sdk_values.Directory
        mask: sdk_values.File | None
        size: int

    # Annotations of a class in a function are texts, which only this function understands.
    Mine.__annotations__ = {"image": sdk_values.File | None, "model": sdk_values.Directory, "mask": File | None, "size": int}
    value = {"image": given(file), "model": given(directory), "mask": None, "size": 3}
    (argument,) = await taken(adapter, [{"type": "dictionary", "value": value}], [Mine])
    assert isinstance(argument, dict)
    assert (CONTENT, True, None, 3) == (
        argument["image"].read_bytes(),
        argument["model"].is_dir(),
        argument["mask"],
        argument["size"],
    )


async def test_the_runtime_says_what_stands_for_a_file(adapter: Adapter, file: Record, directory: Record) -> None:
    """A file becomes a value of the class that the runtime needs, also inside other values."""

    def make(kind: Kind, path: Path) -> object:
        return sdk_values.Directory(path=path) if kind is Kind.DIRECTORY else sdk_values.File(path=path)

    input_data = [given(directory), {"type": "array", "value": [given(file)]}]
    arguments: list[Any] = await taken(adapter, input_data, [Directory, list[File]], make=make)
    assert (sdk_values.Directory, sdk_values.File) == (type(arguments[0]), type(arguments[1][0]))


async def test_what_is_optional_may_be_none(adapter: Adapter) -> None:
    """None is allowed, with any type that is sent."""
    sent = [{"type": name, "value": None} for name in ("none", "dictionary", "pkl")]
    assert [None] * 3 == await taken(adapter, sent, [File | None, FileURL | None, list[File] | None])


@pytest.mark.parametrize(
    ("input_data", "said"),
    [
        (None, "input_data of the run cannot be used: it is None; a list"),
        ({"type": "string"}, "it is a dict; a list"),
        (["text"], "input_data[0] of the run cannot be used: it is 'text'"),
        ([{}], "its type is None; allowed are array, boolean"),
        ([{"type": "tensor", "value": 1}], "its type is 'tensor'"),
        ([{"type": ["file"], "value": 1}], "its type is a list"),
        ([{"type": "x" * 1000, "value": 1}], "..."),
        ([{"type": "dictionary", "value": {"x" * 1000: {"type": "file", "file_path": None}}}], "...]"),
        ([{"type": "integer", "value": "3"}], "its type is integer, but its value is '3'"),
        ([{"type": "dictionary", "value": [1]}], "its value is a list"),
        ([{"type": "file"}], "has neither a file_path nor a file_url"),
        ([{"type": "file", "value": None, "file_path": "", "file_url": None}], "has neither"),
        ([{"type": "file", "file_path": 3}], "is 3; a text"),
        ([{"type": "file", "file_path": ["/etc/passwd"]}], "is a list; a text"),
        ([{"type": "array", "value": [1, {"type": "file", "file_path": None}]}], "input_data[0].value[1] of the run"),
        ([{"type": "dictionary", "value": {"a": {"type": "file", "file_url": None}}}], "input_data[0].value['a'] of the run"),
    ],
)
async def test_malformed_runs(adapter: Adapter, watched: WatchedRepository, input_data: object, said: str) -> None:
    """One sentence that says where, and nothing is asked of anyone."""
    assert said in await refusal(adapter, input_data)
    assert [] == watched.calls


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "etc/passwd",
        "file:///etc/passwd",
        "ftp://host/file",
        "http://",
        "../../etc/passwd",
        "/pipeline_files/../../etc/passwd",
        "/pipeline_files/aa/aa/aa598uohkjgesrohuijger/my_file.txt",
        f"/pipeline_files/ab/cd/{'0' * 64}/name",
        f"/pipeline_files/00/00/{'0' * 64}/..",
        f"/pipeline_files/00/00/{'0' * 64}/a\x00b",
        "/run_files/31/7e/../../etc/passwd",
        "/run_files/31/7f/317e304d-e816-4036-86b2-7ad82b208b70/name",
        "file_" + "0" * 32,
        "0" * 64,
        "my_file.txt",
        f"{URL}/etc/passwd",
        f"{URL}/../etc/passwd",
        f"{URL}/signed/default/1/2/etc/passwd",
        "\x00",
        "\udcff",
        "a" * 100_000,
    ],
)
async def test_a_path_that_is_not_ours(adapter: Adapter, watched: WatchedRepository, path: str) -> None:
    """It is refused, even if such a file is on this machine, and no repository is asked."""
    assert (await refusal(adapter, [{"type": "file", "file_path": path}])).startswith("input_data[0] of the run")
    assert [] == watched.calls


async def test_a_path_of_a_deleted_file(adapter: Adapter, file: Record, watched: WatchedRepository) -> None:
    """Its sentence says that it is not there, by either path."""
    await watched.remove(file.id)
    for path in (file.path, file.run_path):
        with pytest.raises(NotFound, match="nothing is stored under"):
            await taken(adapter, [given(file, file_path=path)])


async def test_a_name_that_the_file_does_not_have(adapter: Adapter, file: Record) -> None:
    """Of a path by content the name counts as well."""
    with pytest.raises(NotFound):
        await taken(adapter, [given(file, file_path=file.path.replace("my file", "other"))])


async def test_a_directory_that_is_none(adapter: Adapter, file: Record) -> None:
    """A file in a directory's place cannot be unpacked, and is not."""
    with pytest.raises(NotAnArchive, match="cannot be unpacked"):
        await taken(adapter, [given(file)], [Directory])


@pytest.mark.parametrize(
    ("declared", "sent", "said"),
    [
        ([File, int], [{"type": "integer", "value": 1}], "it has 1 inputs, but the pipeline takes 2"),
        ([File], [{"type": "string", "value": "/etc/passwd"}], "a file such as"),
        ([File], [{"type": "dictionary", "value": {"path": "x"}}], "a file such as"),
        ([File], [{"type": "none", "value": None}], "a file such as"),
        ([str], [{"type": "string", "value": None}], "it has no value"),
        ([list[File]], [{"type": "string", "value": "x"}], "a list is expected"),
        ([list[File]], [{"type": "file", "file_path": f"pipeline_files/00/00/{'0' * 64}/a"}], "a list of files is expected"),
        ([list[File]], [{"type": "array", "value": ["x"]}], "input_data[0].value[0] of the run"),
        ([dict[str, File]], [{"type": "dictionary", "value": {"a": 1}}], "input_data[0].value['a'] of the run"),
    ],
)
async def test_what_the_pipe_does_not_take(adapter: Adapter, declared: list[object], sent: list[object], said: str) -> None:
    """Is said before the pipe is run."""
    assert said in await refusal(adapter, sent, declared)


async def test_a_run_that_is_nested_without_end(adapter: Adapter) -> None:
    """Is refused, and does not overflow anything."""
    value: object = 1
    for _ in range(DEPTH_LIMIT + 2):
        value = [value]
    assert "levels deep" in await refusal(adapter, [{"type": "array", "value": value}])


async def test_one_wrong_file_stops_the_run_before_anything_is_fetched(
    adapter: Adapter, file: Record, watched: WatchedRepository
) -> None:
    """The run is read as a whole first."""
    watched.calls.clear()
    await refusal(adapter, [given(file), given(file, file_path="/etc/passwd")])
    assert [] == watched.calls


async def test_a_repository_in_a_folder_needs_no_url(file: Record, watched: WatchedRepository, tmp_path: Path) -> None:
    """The files of a run are read without a URL."""
    async with connect(str(tmp_path / "repository"), create=True) as repository:
        (path,) = await taken(Adapter(Cache(tmp_path / "cache", repository), repository), [given(file)])
    assert isinstance(path, Path)
    assert CONTENT == path.read_bytes()


@pytest.mark.slow
async def test_the_files_of_a_run_stay_while_it_runs(watched: WatchedRepository, tmp_path: Path) -> None:
    """Other fetches into a full cache do not evict them before the run ends."""
    options = CacheOptions(stall_seconds=0.1)
    records = []
    for number in range(3):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number]) * 3_000_000)
        records.append((await push(watched, tmp_path / f"{number}.bin")).record)
    adapter = Adapter(Cache(tmp_path / "cache", watched, size_limit=4_000_000, options=options), watched)
    async with adapter.inputs([given(records[0])]) as arguments:
        (path,) = cast("list[Path]", arguments)
        with pytest.raises(CacheFull):
            await taken(adapter, [given(records[1])])
        assert 3_000_000 == path.stat().st_size
    await taken(adapter, [given(records[2])])
    assert not path.exists()


async def test_a_file_that_fails_gives_the_others_back(watched: WatchedRepository, tmp_path: Path) -> None:
    """If one file fails, the files that were resolved for the run may be evicted."""
    (tmp_path / "a.bin").write_bytes(bytes(3_000_000))
    (tmp_path / "b.bin").write_bytes(bytes([1]) * 3_000_000)
    kept, other = [(await push(watched, tmp_path / name)).record for name in ("a.bin", "b.bin")]
    gone = kept.run_path.replace(kept.name, "gone").replace(kept.id[-4:], "0000")
    adapter = Adapter(Cache(tmp_path / "cache", watched, size_limit=4_000_000), watched)
    with pytest.raises(NotFound):
        await taken(adapter, [given(kept), given(kept, file_path=gone)])
    assert 3_000_000 == (await taken(adapter, [given(other)]))[0].stat().st_size
