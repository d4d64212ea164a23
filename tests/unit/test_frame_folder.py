"""The frames that a peer keeps on its disk."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from filestore.core.digest import Digest
from filestore.format.codec import Codec, Frame
from filestore.peers.frame_folder import PROVEN_SECONDS, FrameFolder, sweep
from filestore.system.files import free_space
from tests.support.frames import contents, encoded

ID = "0" * 32
KIB = 1 << 10


def folder_in(root: Path, *, namespace: str = "default", size_limit: int = 1 << 30, min_free: int = 0) -> FrameFolder:
    """The folder as another process opens it."""
    return FrameFolder(root, ID, namespace, size_limit=size_limit, min_free=min_free)


def some(count: int, *, size: int = 4000, seed: int = 0) -> list[Frame]:
    """Frames that take a block of the disk each."""
    return [encoded(content, codec=Codec.RAW) for content in contents(count, size=size, seed=seed)]


def of(frames: list[Frame]) -> list[Digest]:
    """The digests of frames."""
    return [frame.digest for frame in frames]


def age(root: Path, digest: Digest, *, minutes: int) -> None:
    """Let the last use of a frame be so long ago."""
    [path] = root.rglob(str(digest))
    used = path.stat().st_mtime - 60 * minutes
    os.utime(path, (used, used))


def test_a_frame_is_found_by_every_process(tmp_path: Path) -> None:
    """But not in another namespace."""
    frames = some(3)
    assert set(of(frames)) == folder_in(tmp_path).keep(frames)
    other = folder_in(tmp_path)
    assert [len(frame.data) for frame in frames] == other.sizes(of(frames))
    file = other.open(frames[0].digest)
    assert file is not None
    with file:
        assert frames[0].data == file.read()
    assert [0] * 3 == folder_in(tmp_path, namespace="other").sizes(of(frames))


@pytest.mark.parametrize("content", [b"", b"wrong", bytes(4008)])
def test_a_damaged_frame_of_an_earlier_process_is_not_given(content: bytes, tmp_path: Path) -> None:
    """A power cut may leave any content. The frame is then removed, and can be kept again."""
    [frame] = some(1)
    folder_in(tmp_path).keep([frame])
    [path] = tmp_path.rglob(str(frame.digest))
    path.write_bytes(content)
    later = folder_in(tmp_path)
    assert [0] == later.sizes([frame.digest])
    assert {frame.digest} == later.keep([frame])
    assert frame.data == path.read_bytes()


def test_a_frame_that_the_disk_damaged_is_not_given_for_ever(tmp_path: Path) -> None:
    """The process that wrote it verifies it again after some time, and gets it from the server."""
    now = [1.0]
    folder = FrameFolder(tmp_path, ID, "default", size_limit=1 << 30, min_free=0, clock=lambda: now[0])
    frames = some(2)
    assert [0, 0] == folder.sizes(of(frames))
    folder.keep(frames)
    [path] = tmp_path.rglob(str(frames[0].digest))
    path.write_bytes(bytes(len(frames[0].data)))
    now[0] += PROVEN_SECONDS
    assert [0, len(frames[1].data)] == folder.sizes(of(frames))
    assert not path.exists()


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    """A use counts, and the limit holds for all namespaces together."""
    folder, other = (folder_in(tmp_path, namespace=name, size_limit=100 * KIB) for name in ("one", "other"))
    frames = some(20)
    assert set(of(frames)) == folder.keep(frames)
    for number, frame in enumerate(frames):
        age(tmp_path, frame.digest, minutes=100 - number)
    assert [4008] == folder.sizes([frames[0].digest])
    late = some(10, seed=1)
    assert set(of(late)) == other.keep(late)
    left = [size > 0 for size in folder.sizes(of(frames))]
    assert left[0]
    assert sorted(left[1:]) == left[1:]
    assert 8 < sum(left) < 20
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*") if path.is_file()) <= 100 * KIB


def test_a_limit_that_many_frames_of_one_moment_exceed(tmp_path: Path) -> None:
    """No more of them go than must."""
    folder = folder_in(tmp_path, size_limit=100 * KIB)
    for number in range(10):
        assert 5 == len(folder.keep(some(5, seed=number)))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert 15 <= len(files) <= 25


def test_frames_that_do_not_fit_are_not_kept(tmp_path: Path) -> None:
    """Nothing is removed for them."""
    folder = folder_in(tmp_path, size_limit=20 * KIB)
    first = some(4)
    assert 4 == len(folder.keep(first))
    assert set() == folder.keep(some(6, seed=1))
    assert [4008] * 4 == folder.sizes(of(first))
    assert set() == folder_in(tmp_path / "none", size_limit=0).keep(first)


def test_the_disk_keeps_its_free_space(tmp_path: Path) -> None:
    """More must stay free than is: nothing is kept, and what is kept goes."""
    frames = some(4)
    folder_in(tmp_path).keep(frames)
    folder = folder_in(tmp_path, min_free=2 * free_space(tmp_path))
    assert set() == folder.keep(some(4, seed=1))
    assert [] == [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_a_killed_process_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    """A file that is being written now is left."""
    [frame] = some(1)
    folder = folder_in(tmp_path)
    folder.keep([frame])
    [kept] = tmp_path.rglob(str(frame.digest))
    old, new = (kept.with_name(f".{uuid.uuid4().hex}") for _ in range(2))
    for path in (old, new):
        path.write_bytes(b"a part")
    os.utime(old, (1, 1))
    assert 0 == sweep(tmp_path, size_limit=1 << 30, min_free=0)
    assert {kept, new} == {path for path in tmp_path.rglob("*") if path.is_file()}
