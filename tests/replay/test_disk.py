"""The model of a disk: what is durable, and what a power cut may leave."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.replay.disk import Disk, UnknownChangeError
from tests.replay.image import Image
from tests.replay.log import Event, Id, Kind
from tests.replay.states import choices


class Process:
    """Calls of a process on a model of an empty disk."""

    def __init__(self, root: Path) -> None:
        self.disk = Disk(root)
        found = root.stat()
        self.root: Id = (found.st_dev, found.st_ino)
        self._inode = 0

    def call(self, kind: Kind, first: Id, name: str = "", *, second: Id = (0, 0), name2: str = "", data: bytes = b"") -> None:
        """Record one call. Data is written at the beginning of the file."""
        self.disk.apply(Event(kind, first, second, 0, len(data), name, name2, data))

    def make(self, kind: Kind, folder: Id, name: str) -> Id:
        """Make a file or a folder."""
        self._inode += 1
        made = (1, self._inode)
        self.call(kind, folder, name, second=made)
        return made


@pytest.fixture
def process(tmp_path: Path) -> Process:
    """A process on an empty disk."""
    return Process(tmp_path)


def left(process: Process) -> list[dict[str, bytes]]:
    """Return the files of all states that a power cut may leave, without equal ones."""
    chosen = choices(process.disk.pending, random.Random(0), limit=None)
    images: list[Image] = [process.disk.image(choice.kept, choice.tear) for choice in chosen]
    return [dict(files) for files in {tuple(sorted(image.files.items())) for image in images}]


def test_a_sync_of_a_file_leaves_its_name_open(process: Process) -> None:
    """The bytes are durable, and the name is not."""
    file = process.make(Kind.CREATE, process.root, "a")
    process.call(Kind.WRITE, file, data=b"content")
    process.call(Kind.SYNC, file)

    assert [{}, {"a": b"content"}] == sorted(left(process), key=len)


def test_a_sync_of_a_folder_leaves_bytes_open(process: Process) -> None:
    """The name is durable, and the bytes are not."""
    file = process.make(Kind.CREATE, process.root, "a")
    process.call(Kind.WRITE, file, data=b"content")
    process.call(Kind.SYNC, process.root)

    assert [{"a": b""}, {"a": b"content"}] == sorted(left(process), key=lambda files: files["a"])


def test_both_syncs_leave_nothing_open(process: Process) -> None:
    """A file with a durable name and durable bytes is there after any power cut."""
    file = process.make(Kind.CREATE, process.root, "a")
    process.call(Kind.WRITE, file, data=b"content")
    process.call(Kind.SYNC, file)
    process.call(Kind.SYNC, process.root)

    assert [{"a": b"content"}] == left(process)


def test_a_later_write_may_be_kept_without_an_earlier_one(process: Process) -> None:
    """Writes to different files, without a sync between them, have no order."""
    for name in ("a", "b"):
        process.make(Kind.CREATE, process.root, name)
    process.call(Kind.SYNC, process.root)
    process.call(Kind.WRITE, (1, 1), data=b"first")
    process.call(Kind.WRITE, (1, 2), data=b"second")

    assert {"a": b"", "b": b"second"} in left(process)


def test_a_write_is_torn_between_sectors_only(process: Process) -> None:
    """A write of three sectors is torn after the first one or the second one, and the rest may be zeros."""
    file = process.make(Kind.CREATE, process.root, "a")
    process.call(Kind.SYNC, process.root)
    process.call(Kind.WRITE, file, data=b"x" * 1536)
    sectors = {tuple(files["a"][start : start + 512] for start in range(0, 1536, 512)) for files in left(process)}
    x, zero = b"x" * 512, bytes(512)

    assert {
        (b"", b"", b""),
        (x, x, x),
        (x, b"", b""),
        (x, x, b""),
        (x, zero, zero),
        (x, x, zero),
        (zero, x, x),
        (zero, zero, x),
    } == sectors


def test_a_rename_inside_of_a_folder_is_atomic(process: Process) -> None:
    """One of both names is there, and never none or both."""
    process.make(Kind.CREATE, process.root, "a")
    process.call(Kind.SYNC, process.root)
    process.call(Kind.RENAME, process.root, "a", second=process.root, name2="b")

    assert [{"a": b""}, {"b": b""}] == sorted(left(process), key=sorted)


def test_a_rename_between_folders_never_loses_the_file(process: Process) -> None:
    """The old name goes only if the new one is there. A sync of the new folder makes the new name durable."""
    folder = process.make(Kind.MKDIR, process.root, "folder")
    process.make(Kind.CREATE, process.root, "a")
    process.call(Kind.SYNC, process.root)
    process.call(Kind.RENAME, process.root, "a", second=folder, name2="b")
    before = left(process)
    process.call(Kind.SYNC, folder)

    assert [["a"], ["a", "folder/b"], ["folder/b"]] == sorted(sorted(files) for files in before)
    assert [["a", "folder/b"], ["folder/b"]] == sorted(sorted(files) for files in left(process))


def test_a_sync_of_the_old_folder_keeps_the_new_name(process: Process) -> None:
    """Otherwise the file would be lost, also where the new name replaces another file."""
    folder = process.make(Kind.MKDIR, process.root, "folder")
    process.make(Kind.CREATE, process.root, "a")
    process.call(Kind.SYNC, process.root)
    process.make(Kind.CREATE, folder, "b")
    process.call(Kind.RENAME, process.root, "a", second=folder, name2="b")
    process.call(Kind.SYNC, process.root)

    assert [{"folder/b": b""}] == left(process)


def test_the_number_of_a_removed_file_is_used_again(process: Process) -> None:
    """A new file with the inode of a removed one is another file."""
    first = process.make(Kind.CREATE, process.root, "a")
    process.call(Kind.WRITE, first, data=b"first")
    process.call(Kind.UNLINK, process.root, "a")
    process.call(Kind.CREATE, process.root, "b", second=first)

    assert {"b": b""} == process.disk.image().files


def test_shared_memory_of_sqlite_is_left_out(process: Process) -> None:
    """Its name is not there after a power cut, whoever has synced the folder."""
    file = process.make(Kind.CREATE, process.root, "index.sqlite-shm")
    process.call(Kind.WRITE, file, data=b"content")
    process.call(Kind.SYNC_ALL, (0, 0))

    assert [{}] == left(process)


def test_an_unknown_change_is_an_error(process: Process) -> None:
    """A replay that does not know what a call has done claims nothing."""
    file = process.make(Kind.CREATE, process.root, "a")
    with pytest.raises(UnknownChangeError, match="a shared mapping"):
        process.call(Kind.UNSUPPORTED, file, "a shared mapping for writing")


def test_a_limit_takes_a_sample(process: Process) -> None:
    """A seed always takes the same choices; no change and all changes are among them."""
    for number in range(20):
        process.make(Kind.CREATE, process.root, str(number))
    pending = process.disk.pending
    chosen = [list(choices(pending, random.Random(1), limit=5)) for _ in range(2)]

    assert chosen[0] == chosen[1]
    assert [(), tuple(pending)] == [choice.kept for choice in chosen[0][:2]]
    assert 7 == len(chosen[0])


def test_all_pairs_are_chosen_without_a_limit(process: Process) -> None:
    """Of each pair, the later one is kept without the earlier one."""
    for number in range(6):
        process.make(Kind.CREATE, process.root, str(number))
    pending = process.disk.pending
    kept = [set(choice.kept) for choice in choices(pending, random.Random(0), limit=None)]

    for later, second in enumerate(pending):
        for first in pending[:later]:
            assert any(second in each and first not in each for each in kept)
