"""Threads share a file system of fsspec, as those of dask do."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from filestore import blocking
from filestore.filesystem import FilestoreFileSystem


def test_threads_share_one_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one would be closed by nobody."""
    with blocking.connect(tmp_path / "data", create=True) as repository:
        (tmp_path / "note.txt").write_bytes(b"note")
        blocking.push(repository, tmp_path / "note.txt")
    connect, opened, other = blocking.connect, [], threading.Barrier(2)

    def connect_together(*arguments: Any, **options: Any) -> blocking.Repository:
        opened.append(threading.current_thread())
        with suppress(threading.BrokenBarrierError):
            other.wait(1)
        return connect(*arguments, **options)

    monkeypatch.setattr(blocking, "connect", connect_together)
    files = FilestoreFileSystem(str(tmp_path / "data"), skip_instance_cache=True)
    with ThreadPoolExecutor(2) as threads:
        assert [b"note", b"note"] == list(threads.map(files.cat_file, ["note.txt", "note.txt"]))
    assert 1 == len(opened)
