"""`filestore://` of fsspec, at a real server: what reads through it, and what it receives for that."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet
import pytest
import safetensors.numpy

from filestore import blocking
from filestore.core.manifest import Manifest
from filestore.filesystem import FilestoreFileSystem
from filestore.system.loop_thread import run
from tests.support.generator import octets
from tests.support.models import safetensors_file, tensor
from tests.support.server import RunningServer, running_server
from tests.support.trees import Link, plant

pytestmark = pytest.mark.slow

MIB = 1 << 20
TENSORS = [tensor(f"layer.{number}", 3, MIB, seed=number, dtype="I8") for number in range(12)]
WEIGHTS = safetensors_file(TENSORS)
TABLE = pd.DataFrame({"number": range(50_000), "text": [f"text {number % 97}" for number in range(50_000)]})
BYTES = octets(3, 24 * MIB)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a directory, files, and a name that has an owner."""
    folder = tmp_path_factory.mktemp("pushed")
    things = {
        "config.json": b'{"layers": 12}',
        "weights/model.safetensors": WEIGHTS,
        "weights/link.json": Link("../config.json"),
        "table.csv": TABLE.to_csv(index=False).encode(),
        "empty.bin": b"",
        "a b/ä:c.txt": b"a strange name",
    }
    plant(folder / "my_model", things)
    TABLE.to_parquet(folder / "table.parquet", row_group_size=10_000)
    (folder / "bytes.bin").write_bytes(BYTES)
    with running_server(folder / "served") as server, connected(server) as repository:
        for name in ("my_model", "table.parquet", "bytes.bin"):
            blocking.push(repository, folder / name, symlinks="keep" if name == "my_model" else "inside")
        blocking.push(repository, folder / "my_model", name="team/model", symlinks="keep")
        (folder / "note.txt").write_bytes(b"first")
        blocking.push(repository, folder / "note.txt")
        (folder / "note.txt").write_bytes(b"second")
        blocking.push(repository, folder / "note.txt")
        yield server


def url(server: RunningServer) -> str:
    """The URL of the server."""
    return f"http://127.0.0.1:{server.port}"


def connected(server: RunningServer) -> blocking.Repository:
    """An open repository."""
    return blocking.connect(url(server), token=server.token)


@pytest.fixture
def files(server: RunningServer) -> FilestoreFileSystem:
    """A file system that nobody else has used."""
    return FilestoreFileSystem(url(server), server.token, skip_instance_cache=True)


@pytest.fixture
def options(server: RunningServer) -> dict[str, Any]:
    """What a program gives to fsspec."""
    return {"repository": url(server), "token": server.token}


def sent_size(server: RunningServer) -> int:
    """How many bytes of frames the server has sent."""
    lines = server.ask("GET", "/metrics").body.decode().splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if "http_sent_bytes_total" in line and "chunks" in line)


def test_it_is_registered(options: dict[str, Any]) -> None:
    """The package says so by its entry point."""
    assert fsspec.get_filesystem_class("filestore") is FilestoreFileSystem
    with fsspec.open("filestore://my_model.zip/config.json", **options) as file:
        assert b'{"layers": 12}' == file.read()
    with pytest.raises(ValueError, match="needs the option repository"):
        FilestoreFileSystem()


def test_listings(files: FilestoreFileSystem) -> None:
    """Names and owners are at the root, and the newest version of each. Folders are what a directory has."""
    assert ["bytes.bin", "my_model.zip", "note.txt", "table.parquet", "team"] == files.ls("", detail=False)
    assert ["team/model"] == files.ls("filestore://team", detail=False)
    assert {"directory"} == {files.info(path)["type"] for path in ("", "team", "team/model", "my_model.zip", "my_model.zip/a b")}
    inside = ["config.json", "empty.bin", "table.csv", "a b", "weights"]
    assert sorted(f"my_model.zip/{name}" for name in inside) == files.ls("my_model.zip/", detail=False)
    found = files.find("team/model")
    assert "team/model/a b/ä:c.txt" in found
    assert 6 == len(found)
    assert ["my_model.zip/config.json"] == files.glob("my_model.zip/*.json")
    assert ["team/model/weights/link.json", "team/model/weights/model.safetensors"] == files.glob("team/model/weights/*")
    assert ["my_model.zip/config.json", "my_model.zip/weights/link.json"] == files.glob("my_model.zip/**/*.json")
    (listed,) = files.ls("bytes.bin")
    assert (len(BYTES), "file") == (listed["size"], listed["type"])
    assert files.created("note.txt@~1") < files.modified("note.txt")
    assert files.ukey("note.txt") != files.ukey("note.txt@~1")


def test_contents(files: FilestoreFileSystem) -> None:
    """By path, revision, id and digest; links are followed inside of their directory."""
    assert (b"second", b"first") == (files.cat_file("note.txt"), files.cat_file("note.txt@~1"))
    info = files.info("note.txt")
    assert b"second" == files.cat_file(info["id"]) == files.cat_file(info["digest"])
    assert b"a strange name" == files.cat("team/model/a b/ä:c.txt")
    assert b"" == files.cat("my_model.zip/empty.bin")
    assert b'{"layers": 12}' == files.cat("my_model.zip/weights/link.json")
    assert BYTES[-7:] == files.cat_file("bytes.bin", start=-7)
    assert BYTES[5:9] == files.cat_file("bytes.bin", start=5, end=9)
    assert b"" == files.cat_file("bytes.bin", start=9, end=5)
    assert [BYTES[:3], BYTES[-2:]] == files.cat_ranges(["bytes.bin"] * 2, [0, -2], [3, None])


@pytest.mark.parametrize(
    "path", ["nothing", "my_model.zip/nothing", "team/nothing", "note.txt/a", "bytes.bin@v9", "a@b@c", "../x"]
)
def test_what_is_not_there(files: FilestoreFileSystem, path: str) -> None:
    """Programs of fsspec expect FileNotFoundError."""
    assert not files.exists(path)
    for call in (files.info, files.ls, files.cat_file, files.open):
        with pytest.raises(FileNotFoundError):
            call(path)


def test_what_is_not_a_file(files: FilestoreFileSystem) -> None:
    """A directory is not read as one, and nothing is written."""
    for path in ("my_model.zip", "my_model.zip/weights"):
        with pytest.raises(IsADirectoryError):
            files.open(path)
    with pytest.raises(NotImplementedError, match="for reading"):
        files.open("new.bin", "wb")


def test_reads_of_any_kind(files: FilestoreFileSystem) -> None:
    """Whatever the order and the sizes, each read gives what the file has."""
    source = random.Random(1)
    with files.open("bytes.bin") as file:
        for _ in range(200):
            start, size = source.randrange(len(BYTES)), source.choice([1, 100, 70_000, 3 * MIB])
            if source.random() < 0.5:
                file.seek(start)
            at = file.tell()
            assert BYTES[at : at + size] == file.read(size)
        file.seek(0)
        assert BYTES == file.read()
        assert b"" == file.read(1)


def test_reads_in_order_receive_each_chunk_once(server: RunningServer, files: FilestoreFileSystem) -> None:
    """They are read ahead, in few requests."""
    before = sent_size(server)
    with files.open("bytes.bin") as file:
        assert BYTES == b"".join(iter(lambda: file.read(100_000), b""))
    assert len(BYTES) <= sent_size(server) - before <= len(BYTES) * 1.01


def test_one_tensor_receives_its_chunks_and_the_header(server: RunningServer, files: FilestoreFileSystem) -> None:
    """No byte besides: counted at the server."""
    wanted = TENSORS[7]
    with connected(server) as repository:
        record = repository.record("my_model.zip")
        inner = repository.inner
        manifest = Manifest.parse(run(lambda: inner.manifest(record.digest)))
    start = WEIGHTS.index(wanted.data)
    files.info("my_model.zip/config.json")  # the list of the directory is received once
    before = sent_size(server)
    with files.open("my_model.zip/weights/model.safetensors") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        first, last = json.loads(file.read(size))[wanted.name]["data_offsets"]
        assert start == 8 + size + first
        file.seek(start)
        assert wanted.data == file.read(last - first)
    received = sent_size(server) - before
    largest = max(chunk.size for chunk in manifest.chunks)
    assert len(wanted.data) <= received <= len(wanted.data) + 3 * largest
    assert received < len(WEIGHTS) / 3


def test_a_long_read_behind_the_header_reads_nothing_ahead(server: RunningServer, files: FilestoreFileSystem) -> None:
    """It goes on where the header ends. What follows it is not received."""
    size = 8 * MIB
    before = sent_size(server)
    with files.open("bytes.bin") as file:
        assert BYTES[:8] == file.read(8)
        assert BYTES[8:size] == file.read(size - 8)
    assert sent_size(server) - before < size + 4 * MIB  # the largest chunk


def test_safetensors_reads_through_it(files: FilestoreFileSystem) -> None:
    """Its function for bytes takes what a file gives."""
    loaded = safetensors.numpy.load(files.cat_file("team/model/weights/model.safetensors"))
    assert {item.name for item in TENSORS} == set(loaded)
    assert TENSORS[3].data == np.ascontiguousarray(loaded[TENSORS[3].name]).tobytes()


def test_pandas_reads_through_it(options: dict[str, Any]) -> None:
    """Tables in both forms, by URL."""
    for read, path in ((pd.read_parquet, "table.parquet"), (pd.read_csv, "team/model/table.csv")):
        pd.testing.assert_frame_equal(TABLE, read(f"filestore://{path}", storage_options=options), check_dtype=False)


def test_pyarrow_reads_a_column_through_it(server: RunningServer, files: FilestoreFileSystem) -> None:
    """It takes the file system itself."""
    column = pyarrow.parquet.read_table("table.parquet", columns=["number"], filesystem=files)
    assert list(range(50_000)) == column["number"].to_pylist()
    dataset = pyarrow.dataset.dataset("table.parquet", format="parquet", filesystem=files)
    assert 50_000 == dataset.count_rows()


def test_copies_of_it(files: FilestoreFileSystem, tmp_path: Path) -> None:
    """Another process gets the same by pickle, and `get` writes files of this machine."""
    again = pickle.loads(pickle.dumps(files))
    assert b"second" == again.cat("note.txt")
    files.get("my_model.zip/", str(tmp_path / "model"), recursive=True)
    assert WEIGHTS == (tmp_path / "model/weights/model.safetensors").read_bytes()
    with io.TextIOWrapper(files.open("my_model.zip/config.json")) as text:
        assert 12 == json.load(text)["layers"]


def test_a_folder_is_read_in_the_same_way(tmp_path: Path) -> None:
    """Without a server, the URL is the path of a folder. It is opened for reading."""
    (tmp_path / "note.txt").write_bytes(b"in a folder")
    with blocking.connect(tmp_path / "data", create=True) as repository:
        blocking.push(repository, tmp_path / "note.txt")
    assert b"in a folder" == fsspec.filesystem("filestore", repository=str(tmp_path / "data")).cat("note.txt")
