"""When the files that runs have returned expire, with a real repository and a real database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from filestore.core.records import Record
from filestore.errors import DamagedRecord, NotFound
from filestore.repository.index.protocol import Use
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository
from filestore.runtime.database import open_database
from filestore.runtime.kept_clock import KeptClock
from filestore.runtime.run_files import Expiry, OutputRepository, RunFiles, remove_expired
from filestore.transfer.push import push
from tests.support.runtimes import output_repository

EXPIRE_SECONDS = 100.0


class Files:
    """Outputs of runs, and a clock that a test moves."""

    def __init__(self, users: LocalRepository, outputs: OutputRepository, folder: Path) -> None:
        self.time = 0.0
        self.users = users
        self.outputs = outputs
        self._folder = folder
        self._database = open_database(folder)
        with self._database.read() as connection:
            clock = KeptClock(connection, monotonic=lambda: self.time, wall=lambda: self.time)
        self.run_files = outputs.run_files = RunFiles(self._database, clock)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    async def push(self, repository: Repository, name: str = "a.bin") -> Record:
        """Push a file with always the same content."""
        path = self._folder / name
        path.write_bytes(b"content")
        return (await push(repository, path)).record

    async def expire(self, *in_use: str, after: float = EXPIRE_SECONDS + 1) -> None:
        """Let time pass, and remove what has expired then."""
        self.time += after
        await remove_expired(self.run_files, self.users, expire_seconds=EXPIRE_SECONDS, in_use=in_use)

    async def are_there(self, *records: Record) -> list[bool]:
        """Return for each record whether it is stored."""
        stored = {record.id for record in await self.users.records()}
        return [record.id in stored for record in records]


@pytest.fixture
def files(local_repository: Repository, tmp_path: Path) -> Iterator[Files]:
    """A repository without files."""
    (tmp_path / "runtime").mkdir()
    assert isinstance(local_repository, LocalRepository)
    with closing(Files(local_repository, output_repository(local_repository), tmp_path / "runtime")) as files:
        yield files


async def test_an_output_expires(files: Files) -> None:
    """With its chunks. A file that only users push is not touched."""
    users = await files.push(files.users, "users.txt")
    output = await files.push(files.outputs)
    await files.expire(after=EXPIRE_SECONDS - 1)
    assert [True, True] == await files.are_there(output, users)
    await files.expire(after=2)

    assert [False, True] == await files.are_there(output, users)
    assert [Expiry.REMOVED, None] == [files.run_files.expiry(record.id) for record in (output, users)]
    await files.users.remove(users.id, with_chunks=True)
    with pytest.raises(NotFound):
        await files.users.manifest(output.digest)


async def test_an_output_that_is_returned_again_lives_longer(files: Files) -> None:
    """Its time begins again."""
    first = await files.push(files.outputs)
    await files.expire(after=EXPIRE_SECONDS - 1)
    second = await files.push(files.outputs)
    await files.expire(after=EXPIRE_SECONDS - 1)
    assert (first.id, [True]) == (second.id, await files.are_there(first))
    await files.expire(after=2)
    assert [False] == await files.are_there(first)


async def test_an_output_that_a_user_has_pushed_never_expires(files: Files) -> None:
    """Whether the user pushed it before the run, after it, or between two runs; also if runs return it again."""
    before = await files.push(files.users, "before")
    assert before.id == (await files.push(files.outputs, "before")).id
    after = await files.push(files.outputs, "after")
    await files.push(files.users, "after")
    between = await files.push(files.outputs, "between")
    await files.push(files.users, "between")
    await files.push(files.outputs, "between")
    for _ in range(3):
        await files.expire()
        assert [True] * 3 == await files.are_there(before, after, between)
        for name in ("before", "after", "between"):
            await files.push(files.outputs, name)


async def test_an_output_that_a_user_pushes_at_the_last_moment_stays(files: Files) -> None:
    """Between the mark and the removal."""
    output = await files.push(files.outputs)
    files.time += EXPIRE_SECONDS + 1
    marked = files.run_files.mark_expired(expire_seconds=EXPIRE_SECONDS, in_use=())
    assert {output.id: output.updated_at} == marked
    await files.push(files.users)
    await files.expire()

    assert ([True], Expiry.NONE) == (await files.are_there(output), files.run_files.expiry(output.id))


async def test_an_output_that_a_run_returns_at_the_last_moment_stays(files: Files) -> None:
    """Between the mark and the removal, and it can expire later."""
    output = await files.push(files.outputs)
    files.time += EXPIRE_SECONDS + 1
    ((file_id, pushed_at),) = files.run_files.mark_expired(expire_seconds=EXPIRE_SECONDS, in_use=()).items()
    await files.push(files.outputs)
    with pytest.raises(NotFound):
        await files.users.remove(file_id, updated_at=pushed_at)
    files.run_files.note_removed(file_id, pushed_at, is_removed=False)
    assert [True] == await files.are_there(output)
    await files.expire()
    assert [False] == await files.are_there(output)


async def test_an_input_of_a_run_lives_longer(files: Files) -> None:
    """By each kind of path. While the run has not ended, its inputs do not expire at all."""
    output, other = await files.push(files.outputs), await files.push(files.outputs, "other")
    await files.expire(after=EXPIRE_SECONDS - 1)
    used = files.run_files.note_inputs(f'{{"file_path": "/{output.run_path}", "x": "run_files/aa/bb/{"0" * 36}/n"}}')
    assert {output.id} == used
    # Both have the same content, so this names both.
    assert {output.id, other.id} == files.run_files.note_inputs(f'{{"file_path": "{output.path}"}}')
    assert {output.id} == files.run_files.note_inputs([{"file_path": f"http://127.0.0.1/v3/pipeline_files/download/{output.id}"}])
    assert {output.id} == files.run_files.note_inputs({"a": [output.run_path.replace("_", "%5f")]})
    await files.expire(after=EXPIRE_SECONDS - 1)
    assert [True, True] == await files.are_there(output, other)
    await files.expire(*used)
    assert [True, False] == await files.are_there(output, other)
    await files.expire(after=0)
    assert [False, False] == await files.are_there(output, other)


async def test_an_output_that_a_pipeline_needs_stays(files: Files) -> None:
    """Until the pipeline is deleted; then it has its whole time again."""
    needed, other = await files.push(files.outputs, "needed"), await files.push(files.outputs, "other")
    await files.users.add_uses([Use(needed.id, "pipeline_1", "a pipeline:v1")])
    for _ in range(2):
        await files.expire()
        assert [True, False] == await files.are_there(needed, other)
    assert files.run_files.expiry(needed.id) is Expiry.NONE
    await files.users.remove_uses("pipeline_1", graph_ids=[])
    await files.expire(after=EXPIRE_SECONDS - 1)
    assert [True] == await files.are_there(needed)
    await files.expire(after=2)
    assert [False] == await files.are_there(needed)


async def test_a_kill_between_mark_and_removal(files: Files) -> None:
    """The next removal continues, and also one that was killed before it noted the removal."""
    first, second = await files.push(files.outputs, "first"), await files.push(files.outputs, "second")
    files.time += EXPIRE_SECONDS + 1
    files.run_files.mark_expired(expire_seconds=EXPIRE_SECONDS, in_use=())
    await files.users.remove(first.id)
    await files.expire(after=0)

    assert [False, False] == await files.are_there(first, second)
    assert [Expiry.REMOVED] * 2 == [files.run_files.expiry(record.id) for record in (first, second)]


async def test_a_damaged_record_stops_no_other_removal(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again after the same time, and stays readable until then."""
    first, second = await files.push(files.outputs, "first"), await files.push(files.outputs, "second")
    remove = files.users.remove

    async def damaged(file_id: str, **options: object) -> Record:
        if file_id == first.id:
            raise DamagedRecord(file_id, "first", "its manifest is damaged")
        return await partial(remove, file_id, **options)()  # type: ignore[arg-type]

    monkeypatch.setattr(files.users, "remove", damaged)
    await files.expire()
    assert [True, False] == await files.are_there(first, second)
    monkeypatch.undo()
    assert files.run_files.expiry(first.id) is Expiry.NONE
    await files.expire(after=0)
    assert [True, False] == await files.are_there(first, second)
    await files.expire()
    assert [False, False] == await files.are_there(first, second)
