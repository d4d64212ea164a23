"""The index knows which stored files pipelines need. No Pipeline SDK is needed here."""

from __future__ import annotations

import pickle
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from filestore.cache import Cache
from filestore.core.records import Record
from filestore.core.references import File, Reference
from filestore.errors import FileInUse
from filestore.repository.index.protocol import Use
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository
from filestore.runtime.database import open_database
from filestore.runtime.pipelines import Pipeline, Pipelines
from filestore.runtime.process import ProcessLimits
from filestore.runtime.server import RuntimeLimits, open_runtime
from filestore.runtime.uses import Uses, scan_graph
from filestore.transfer.push import push
from tests.support.import_crashes import pipeline_id, write_documents
from tests.support.runtimes import output_repository

LIMITS = RuntimeLimits(pipelines=1, process=ProcessLimits(seconds=60, memory=1 << 30))
ID = "file_" + "0a" * 16
OTHER_ID = "file_" + "0b" * 16
DIGEST = "ab" * 32


def a_pipeline(number: int, graph: Record, *, version: int = 1) -> Pipeline:
    """Return a pipeline that has a stored graph."""
    return Pipeline(
        id=pipeline_id(number),
        name="team/model",
        version=version,
        environment_id="default",
        created_at="2026-11-24T05:57:45.535263Z",
        graph_id=graph.id,
        path=graph.path,
        input_variables=[],
        output_variables=[],
    )


async def store(repository: Repository, folder: Path, name: str, content: bytes) -> Record:
    """Store a file."""
    (folder / name).write_bytes(content)
    return (await push(repository, folder / name)).record


async def start(repository: Repository, folder: Path) -> None:
    """Start a runtime, and stop it."""
    async with open_runtime(
        output_repository(repository), partial(Cache, folder / "cache"), folder / "runtime", environ={}, limits=LIMITS
    ):
        pass


def add_pipeline(folder: Path, pipeline: Pipeline) -> None:
    """Add a pipeline to a runtime that does not run."""
    (folder / "runtime").mkdir()
    with closing(open_database(folder / "runtime")) as database:
        Pipelines(database, folder / "runtime/pipelines").add(pipeline)


@pytest.fixture
def repository(local_repository: Repository) -> LocalRepository:
    """A repository in a folder."""
    assert isinstance(local_repository, LocalRepository)
    return local_repository


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_scanned(tmp_path: Path, protocol: int) -> None:
    """Ids, digests and stored paths are found, however they are pickled. Nothing is unpickled."""
    values = [
        {"a": [ID]},
        Path(f"run_files/0b/0b/{'-'.join(('0b' * 4, *['0b' * 2] * 3, '0b' * 6))}/a.jpg"),
        f"/pipeline_files/ab/ab/{DIGEST}/a",
    ]
    (tmp_path / "graph").write_bytes(pickle.dumps(values, protocol))

    assert {ID, OTHER_ID, DIGEST} == {str(reference) for reference in scan_graph(tmp_path / "graph")}


@pytest.mark.parametrize("before", [0, 1, (1 << 20) - 100, (1 << 20) - 20, 1 << 20, 3 << 20])
def test_a_graph_is_scanned_in_pieces(tmp_path: Path, before: int) -> None:
    """An id is found where two pieces meet, too."""
    (tmp_path / "graph").write_bytes(b"-" * before + f"{DIGEST} {ID}".encode())

    assert [Reference(id=ID), DIGEST] == [
        reference if reference.id else str(reference) for reference in scan_graph(tmp_path / "graph")
    ]


def test_an_empty_graph_names_nothing(tmp_path: Path) -> None:
    """Nor do bytes that are not a pickle, and an id that is cut short."""
    for content in (b"", b"\x80\x05no pickle", b"file_0a"):
        (tmp_path / "graph").write_bytes(content)
        assert [] == scan_graph(tmp_path / "graph")


async def test_a_file_that_a_pipeline_needs_is_not_removed(repository: LocalRepository, tmp_path: Path) -> None:
    """The error has the names of the pipelines. By force it is removed, and after its pipelines are removed."""
    model, other = [await store(repository, tmp_path, name, name.encode()) for name in ("model.bin", "other.bin")]
    graphs = [await store(repository, tmp_path, f"{number}.graph", b"%d" % number) for number in (1, 2)]
    pipelines = [a_pipeline(number, graph, version=number) for number, graph in zip((1, 2), graphs, strict=True)]
    uses = Uses(repository)
    for pipeline in pipelines:
        await uses.add(pipeline, [Reference(id=model.id), Reference(digest=other.digest), Reference(id=ID)])

    for needed in (model, other):
        for with_chunks in (False, True):
            with pytest.raises(FileInUse, match=f"{needed.id} is needed by the pipeline team/model:v1, team/model:v2; "):
                await repository.remove(needed.id, with_chunks=with_chunks)
    assert [other, model] == await repository.records()
    assert other == await repository.remove(other.id, force=True)

    await uses.remove(pipelines[0])
    with pytest.raises(FileInUse, match="by the pipeline team/model:v2; "):
        await repository.remove(model.id)
    await uses.remove(pipelines[1])
    assert model == await repository.remove(model.id)
    assert [] == await repository.uses()


async def test_each_record_of_a_content_is_protected(repository: LocalRepository, tmp_path: Path) -> None:
    """A graph names a file by its digest, and the name of the record is not known."""
    graph, needed = [await store(repository, tmp_path, name, name.encode()) for name in ("graph", "needed")]
    copy = (await push(repository, tmp_path / "needed", name="copy")).record
    await Uses(repository).add(a_pipeline(1, graph), [Reference(digest=needed.digest)])
    for record in (needed, copy):
        with pytest.raises(FileInUse):
            await repository.remove(record.id)


async def test_uses_of_a_deleted_pipeline_are_released(repository: LocalRepository, tmp_path: Path) -> None:
    """It was deleted while it was loaded, so its static files were recorded after its uses were removed."""
    model = await store(repository, tmp_path, "model.bin", b"model")
    graphs = [await store(repository, tmp_path, f"{number}.graph", b"%d" % number) for number in (1, 2)]
    deleted, kept = (a_pipeline(number, graph) for number, graph in enumerate(graphs))
    add_pipeline(tmp_path, kept)
    make_cache = partial(Cache, tmp_path / "cache")
    async with open_runtime(
        output_repository(repository), make_cache, tmp_path / "runtime", environ={}, limits=LIMITS
    ) as runtime:
        for pipeline in (deleted, kept):
            await runtime.uses.add_loaded(pipeline, [File(id=model.id)])
            await runtime.release_if_deleted(pipeline)

    assert {pipeline_id(1)} == {use.pipeline_id for use in await repository.uses()}
    with pytest.raises(FileInUse):
        await repository.remove(model.id)


async def test_static_files_are_known_after_the_graph_was_loaded(repository: LocalRepository, tmp_path: Path) -> None:
    """What the scan of the graph has missed is added. Files behind URLs are not stored files."""
    model, named = [await store(repository, tmp_path, name, name.encode()) for name in ("model.bin", "named.bin")]
    pipeline = a_pipeline(1, await store(repository, tmp_path, "graph", b""))
    uses = Uses(repository)
    await uses.add(pipeline, [Reference(id=named.id)])

    await uses.add_loaded(pipeline, [File(model.path), File(url="https://example.org/a"), File(id=ID)])

    found = {use.file_id for use in await repository.uses()}
    assert {model.id, named.id, pipeline.graph_id} == found


async def test_an_upload_that_was_killed_is_removed_at_the_next_start(repository: LocalRepository, tmp_path: Path) -> None:
    """Its graph and its uses were written, and the pipeline was not."""
    model = await store(repository, tmp_path, "model.bin", b"model")
    graph = await store(repository, tmp_path, "graph", model.id.encode())
    await Uses(repository).add(a_pipeline(1, graph), [Reference(id=model.id)])

    await start(repository, tmp_path)

    assert ([], [model]) == (await repository.uses(), await repository.records())
    assert model == await repository.remove(model.id)


async def test_a_deletion_that_was_killed_is_completed_at_the_next_start(repository: LocalRepository, tmp_path: Path) -> None:
    """The pipeline was removed, and its graph and uses were not. Other pipelines keep theirs."""
    graphs = [await store(repository, tmp_path, f"{number}.graph", b"%d" % number) for number in (1, 2)]
    for number, graph in enumerate(graphs):
        await Uses(repository).add(a_pipeline(number, graph), [])
    add_pipeline(tmp_path, a_pipeline(1, graphs[1]))

    await start(repository, tmp_path)

    assert [Use(graphs[1].id, pipeline_id(1), "team/model:v1", is_graph=True)] == await repository.uses()
    assert [] == await repository.records()
    assert graphs[1] == await repository.record(graphs[1].id)


async def test_pipelines_of_an_earlier_version_get_their_uses(
    repository: LocalRepository, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their graphs were ordinary records. A pipeline whose graph is missing is told of, and the others are not affected."""
    model = await store(repository, tmp_path, "model.bin", b"model")
    graph = await store(repository, tmp_path, "graph", b"a text " + model.id.encode())
    add_pipeline(tmp_path, a_pipeline(9, graph))
    write_documents(tmp_path / "runtime")

    for _ in range(2):
        await start(repository, tmp_path)

        assert [model] == await repository.records()
        with pytest.raises(FileInUse, match="team/model:v1"):
            await repository.remove(model.id)
    assert "the files that pipeline_00000000000000000000000000000000 needs are not protected" in caplog.text
