"""A lock ends with its holder's block: no forked child keeps it, and no stopped process is waited for without limit."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Self

import pytest
from blake3 import blake3

from filestore import Cache
from filestore.core.digest import Digest
from filestore.core.manifest import Chunk, Manifest
from filestore.errors import Busy, TargetError
from filestore.format.zip.read import End
from filestore.http.server.routes.sdk import uploads
from filestore.http.server.routes.sdk.disk_uploads import DiskUpload
from filestore.http.server.upload_quota import UploadQuota
from filestore.repository.protocol import Repository
from filestore.runtime.process import ProcessLimits
from filestore.runtime.server import RuntimeLimits, open_runtime
from filestore.transfer.fetch import _PartialFile
from filestore.transfer.leftovers import leftovers
from filestore.transfer.sinks.tree import TreeStaging
from filestore.transfer.sinks.zip_index import Zip
from filestore.transfer.target import Target, tree_label
from tests.support.disks import refuse_locks
from tests.support.runtimes import output_repository

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

DIGEST = Digest(blake3(b"content").digest())


class Child:
    """A child with a copy of every descriptor that this process has at the time of `fork`; it ends with the block."""

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        self._pid = 0
        return self

    def fork(self) -> None:
        """Once."""
        self._pid = os.fork()
        if not self._pid:
            os.close(self._writer)
            os.read(self._reader, 1)  # until the parent closes its end
            os._exit(0)

    def __exit__(self, *_: object) -> None:
        os.close(self._writer)
        os.close(self._reader)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


@pytest.fixture
def child() -> Iterator[Child]:
    """A child that the test forks."""
    with Child() as child:
        yield child


@contextmanager
def stopped_holder(folder: Path) -> Iterator[int]:
    """The id of a process that was stopped while it holds the lock of `folder`."""
    pid = os.fork()
    if not pid:
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


async def test_child_that_is_forked_while_an_upload_is_cut_keeps_no_lock(child: Child, tmp_path: Path) -> None:
    """The next part, and the end of the upload, are cut by whoever comes."""
    upload = DiskUpload(uploads.begin(tmp_path / "uploads", name="a", namespace="n"), UploadQuota(tmp_path / "uploads"))
    async with upload.locked(limit_seconds=0) as was_held:
        child.fork()
    async with upload.locked(limit_seconds=0) as is_held:
        assert (True, True) == (was_held, is_held)


async def test_child_that_is_forked_while_a_part_is_kept_keeps_no_lock(child: Child, tmp_path: Path) -> None:
    """The next part of that upload is kept."""
    with uploads._locked_folder(tmp_path, limit_seconds=0):
        child.fork()
    with uploads._locked_folder(tmp_path, limit_seconds=0):
        pass


async def test_child_that_is_forked_by_a_runtime_keeps_no_lock(
    child: Child, tmp_path: Path, local_repository: Repository
) -> None:
    """The next runtime has the folder."""
    limits = RuntimeLimits(pipelines=1, process=ProcessLimits(seconds=60, memory=1 << 30))
    make_cache = partial(Cache, tmp_path / "cache")
    async with open_runtime(output_repository(local_repository), make_cache, tmp_path / "runtime", environ={}, limits=limits):
        child.fork()
    async with open_runtime(
        output_repository(local_repository), make_cache, tmp_path / "runtime", environ={}, limits=limits
    ) as runtime:
        assert tmp_path / "runtime" == runtime.work_folder.parent


def test_child_that_is_forked_during_a_fetch_claims_no_staging_file(child: Child, tmp_path: Path) -> None:
    """What the fetch has left can be removed once it has ended."""
    manifest = Manifest.build([Chunk(DIGEST, 7)], chunking_version=1)
    with _PartialFile(tmp_path / "target", manifest) as staging:
        staging.open()
        assert [True] == [each.is_in_use for each in leftovers(tmp_path)]
        child.fork()
    assert [False] == [each.is_in_use for each in leftovers(tmp_path)]


def test_child_that_is_forked_during_a_fetch_of_a_tree_claims_no_staging_folder(child: Child, tmp_path: Path) -> None:
    """What the fetch has left can be removed once it has ended."""
    target = Target(tmp_path / "target", DIGEST, force=False)
    with TreeStaging(target.staging, target.path, Zip([], End(0, 22, 0, 0), b"")) as staging:
        staging.prepare()
        assert [True] == [each.is_in_use for each in leftovers(tmp_path)]
        child.fork()
    assert [False] == [each.is_in_use for each in leftovers(tmp_path)]


def test_child_that_leaves_a_fetch_takes_no_claim_away(tmp_path: Path) -> None:
    """The parent goes on, and its staging file is still in use."""
    manifest = Manifest.build([Chunk(DIGEST, 7)], chunking_version=1)
    with _PartialFile(tmp_path / "target", manifest) as staging:
        staging.open()
        pid = os.fork()
        if not pid:
            staging.__exit__(None, None, None)
            os._exit(0)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert [True] == [each.is_in_use for each in leftovers(tmp_path)]


def test_stopped_process_that_publishes_does_not_stop_the_next_fetch_for_ever(tmp_path: Path) -> None:
    """It is told which process holds the folder, and what to do."""
    aside = tmp_path / f".{tree_label(tmp_path.name)}.filestore-aside"
    aside.mkdir()
    target = Target(tmp_path, DIGEST, force=True, lock_seconds=0)
    with stopped_holder(aside) as pid, pytest.raises(Busy) as raised:
        target.look()
    assert (
        f"{tmp_path} is busy: process {pid} replaces what is in this folder and has not ended within 0 seconds;"
        " if it was stopped, continue it or end it; try again"
    ) == str(raised.value)


def test_without_locks_nothing_is_put_back_that_another_fetch_may_be_moving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that move the same names at once would mix the old tree with the new one."""
    aside = tmp_path / f".{tree_label(tmp_path.name)}.filestore-aside"
    aside.mkdir()
    (aside / "old").write_bytes(b"old")
    refuse_locks(monkeypatch)
    with pytest.raises(TargetError, match="file locks do not work there"):
        Target(tmp_path, DIGEST, force=True).look()
    assert b"old" == (aside / "old").read_bytes()
