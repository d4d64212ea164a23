"""A push that recalls chunks of an earlier push of a tree gives the same chunks as a push that reads everything.

Sizes are a thousandth of the real ones, so that a small tree has many chunks, segments and windows.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filestore.core.manifest import Manifest
from filestore.format.chunking import chunker as chunker_module
from filestore.format.chunking import segments as segments_module
from filestore.format.chunking import zip as zip_module
from filestore.format.zip import chunker as tree_chunker_module
from filestore.transfer.sources import tree_fingerprint
from filestore.transfer.sources.file import CachedPush
from filestore.transfer.sources.tree import TreeSource
from filestore.transfer.sources.walk import Symlinks, walk

SEGMENT_MIN = 256
RECORDED_AT = 3_000_000_000_000_000_000
"""A time at which every file of these tests is settled."""


@pytest.fixture(autouse=True, scope="module")
def _small_sizes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patches:
        for name, value in [("_CHUNK_MIN", 512), ("_CHUNK_AVERAGE", 768), ("CHUNK_LIMIT", 4096)]:
            patches.setattr(chunker_module, name, value)
        for module in (segments_module, zip_module, tree_chunker_module, tree_fingerprint):
            patches.setattr(module, "SEGMENT_MIN", SEGMENT_MIN)
        patches.setattr(tree_chunker_module, "LOOKAHEAD", 5 << 10)
        patches.setattr(tree_chunker_module, "WINDOW_MIN", (5 << 10) + SEGMENT_MIN + 1024)
        # In memory nothing is written back, so that each push would read every file.
        patches.setattr(TreeSource, "_is_written_back", lambda *_: True)
        yield


class _Forest:
    """A tree on a disk that is changed at random. Each change moves the mtime, as it does outside tests."""

    def __init__(self, root: Path, random_: random.Random) -> None:
        self._root = root
        self._random = random_
        self._clock = 1
        self._large = random_.choice([0, 0.01, 0.1])
        root.mkdir()
        for _ in range(random_.choice([0, 3, 40, 150])):
            self.add()

    def change(self) -> None:
        """Make one change."""
        paths = sorted(path for path in self._root.rglob("*") if not path.is_dir() or path.is_symlink())
        if not paths or not self._random.randrange(8):
            self.add()
            return
        path = self._random.choice(paths)
        kind = self._random.choice(["write", "mode", "remove", "move"])
        if kind == "remove" or path.is_symlink():
            path.unlink()
        elif kind == "mode":
            path.chmod(path.stat().st_mode ^ 0o100)
        elif kind == "move":
            path.rename(path.with_name(f"{path.name}{self._random.choice('a~')}"))
        else:
            self._write(path, self._changed(path.read_bytes()))

    def _changed(self, content: bytes) -> bytes:
        """Return `content` as it was, with another byte, longer, shorter, empty, or other content of the same or any size."""
        place = self._random.randrange(len(content) or 1)
        return self._random.choice(
            [
                content,
                content[:place] + b"." + content[place + 1 :],
                b"." + content[1:],
                content[:-1] + b".",
                content + b"x",
                content[:-1],
                b"",
                self._random.randbytes(len(content)),
                self._content(),
            ]
        )

    def add(self) -> None:
        """Add a file, a large file, an empty folder or a link."""
        folder = self._root / self._random.choice(["", "a", "b/c", "m", "z"])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self._random.randrange(1 << 20):x}"
        if path.exists() or path.is_symlink():
            return
        match self._random.randrange(30):
            case 0:
                path.mkdir()
            case 1:
                path.symlink_to("x" * self._random.randrange(1, 100))
            case _:
                self._write(path, self._content())

    def _content(self) -> bytes:
        size = self._random.choice([0, 1, self._random.randrange(60), self._random.randrange(SEGMENT_MIN), SEGMENT_MIN - 1])
        if self._random.random() < self._large:
            size = self._random.choice([SEGMENT_MIN, self._random.randrange(SEGMENT_MIN, 9000)])
        return bytes(size) if not self._random.randrange(6) else self._random.randbytes(size)

    def _write(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self._clock += 1
        os.utime(path, (self._clock, self._clock))


def _scanned(source: TreeSource, window: int) -> Manifest:
    buffer = memoryview(bytearray(window))
    while not source.is_finished:
        for scanned in source.scan(buffer):
            scanned.hash()
    source.check_unchanged()
    return source.manifest()


@settings(max_examples=60)
@given(st.integers(0, 1 << 40), st.integers(0, 6), st.integers(0, 3000))
def test_recalled_chunks_are_those_of_a_push_that_reads_everything(seed: int, change_count: int, wider: int) -> None:
    """After any changes, in three pushes one after the other, each of which recalls the one before."""
    random_ = random.Random(seed)
    window = tree_chunker_module.WINDOW_MIN + wider
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        forest = _Forest(root, random_)
        cached: CachedPush | None = None
        for _ in range(3):
            walked = walk(root, symlinks=Symlinks.KEEP)
            with TreeSource(walked) as whole, TreeSource(walked) as sparing:
                expected = _scanned(whole, window)
                if cached is not None:
                    sparing.load_fingerprint(cached)
                assert expected.encoded == _scanned(sparing, window).encoded
                assert whole.fingerprint() == sparing.fingerprint()
                assert sparing.files_done == sparing.file_count
                assert sparing.read <= whole.read
                content = bytearray(whole.size)
                again = bytearray(whole.size)
                whole.read_into(memoryview(content), 0)
                sparing.read_into(memoryview(again), 0)
                assert content == again
                cached = CachedPush(expected, sparing.fingerprint(), RECORDED_AT)
            for _ in range(change_count):
                forest.change()
