"""An edit of a stored tree gives the manifest that a push of the resulting folder gives.

Sizes are a thousandth of the real ones, so that a small tree has many chunks, segments and windows.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filestore.format.chunking import chunker as chunker_module
from filestore.format.chunking import segments as segments_module
from filestore.format.chunking import zip as zip_module
from filestore.format.zip import chunker as tree_chunker_module
from filestore.format.zip.checksum import crc32
from filestore.repository.local import LocalRepository
from filestore.transfer import push as push_module
from filestore.transfer import stored_tree as stored_tree_module
from filestore.transfer.edits import content as content_module
from filestore.transfer.edits import edit as edit_module
from filestore.transfer.edits import stored_entries as stored_entries_module
from filestore.transfer.edits.content import Sums
from filestore.transfer.edits.operations import CopyFile, DeleteFile, DeleteFolder, Operation, PutBytes, PutChunks, PutFile
from filestore.transfer.push import push
from filestore.transfer.sources import tree_fingerprint
from filestore.transfer.sources.tree import TreeSource
from filestore.transfer.stored_tree import StoredTree
from tests.support.editing import after, edited, foreign_zip, pushed_manifest, pushed_tree, stored_chunks
from tests.support.fetching_trees import memory_repository
from tests.support.trees import Folder, Link, Planted, Script

SEGMENT_MIN = 256
FOLDERS = ["", "a/", "a/b/", "m/", "z/"]


@pytest.fixture(autouse=True, scope="module")
def _small_sizes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patches:
        for name, value in [("_CHUNK_MIN", 512), ("_CHUNK_AVERAGE", 768), ("CHUNK_LIMIT", 4096)]:
            patches.setattr(chunker_module, name, value)
        for module in (
            segments_module,
            zip_module,
            tree_chunker_module,
            tree_fingerprint,
            stored_tree_module,
            content_module,
            edit_module,
            stored_entries_module,
        ):
            patches.setattr(module, "SEGMENT_MIN", SEGMENT_MIN)
        patches.setattr(tree_chunker_module, "LOOKAHEAD", 5 << 10)
        patches.setattr(tree_chunker_module, "WINDOW_MIN", (5 << 10) + SEGMENT_MIN + 1024)
        patches.setattr(stored_entries_module, "_DEFLATED_SIZE", 100)
        # In memory nothing is written back, so that each push would read every file.
        patches.setattr(TreeSource, "_is_written_back", lambda *_: True)
        yield


class _Editor:
    """A tree that is changed at random: as a mapping, and as operations on what is stored."""

    def __init__(self, folder: Path, repository: LocalRepository, random_: random.Random) -> None:
        self._folder = folder
        self._repository = repository
        self._random = random_
        self._large = random_.choice([0.0, 0.05, 0.2])
        self._files = 0
        self.things: dict[str, Planted] = {}
        for _ in range(random_.choice([0, 3, 40, 120])):
            self._add()

    async def operations(self) -> tuple[list[Operation], dict[str, bytes]]:
        """Return operations that fit together, and the contents of files that are put by their path or chunks."""
        operations: list[Operation] = []
        contents: dict[str, bytes] = {}
        taken: set[str] = set()
        if self._random.random() < 0.2 and (folder := self._random.choice(["a", "a/b", "z"])) and self._holds(folder):
            operations.append(DeleteFolder(f"{folder}{self._random.choice(['', '/'])}"))
            taken = {name for name in self.things if name == folder or name.startswith(f"{folder}/")}
        for _ in range(self._random.randrange(6)):
            files = [name for name, thing in self.things.items() if not isinstance(thing, Folder)]
            target = self._random.choice(files) if files and self._random.random() < 0.5 else self._new_name()
            if target in taken:
                continue
            taken.add(target)
            operation = await self._operation(target, files, contents)
            if operation is not None:
                operations.append(operation)
        self._random.shuffle(operations)
        return operations, contents

    async def _operation(self, target: str, files: list[str], contents: dict[str, bytes]) -> Operation | None:
        is_executable = self._random.choice([None, None, True, False])
        content = self._content()
        kind = self._random.choice(["bytes", "file", "chunks", "delete", "copy"])
        if kind == "delete":
            return DeleteFile(target) if target in files else None
        if kind == "copy":
            return CopyFile(target, self._random.choice(files)) if files else None
        if kind == "bytes":
            return PutBytes(target, content, is_executable)
        contents[target] = content
        self._files += 1
        file = self._folder / f"file-{self._files}"
        if kind == "file":
            file.write_bytes(content)
            return PutFile(target, file, is_executable)
        manifest = await stored_chunks(self._repository, file, content)
        crc = self._random.choice([None, crc32(content)])
        return PutChunks(target, manifest.chunks, crc, is_executable, _sums(content))

    def _holds(self, folder: str) -> bool:
        return any(name == folder or name.startswith(f"{folder}/") for name in self.things) and folder not in {
            name for name, thing in self.things.items() if not isinstance(thing, Folder)
        }

    def _add(self) -> None:
        name = self._new_name()
        if name in self.things:
            return
        match self._random.randrange(20):
            case 0:
                self.things[f"{name}-folder"] = Folder()
            case 1:
                self.things[name] = Link("x" * self._random.randrange(1, 100))
            case 2:
                self.things[name] = Script(self._content())
            case _:
                self.things[name] = self._content()

    def _new_name(self) -> str:
        return f"{self._random.choice(FOLDERS)}f{self._random.randrange(1 << 20):x}"

    def _content(self) -> bytes:
        size = self._random.choice([0, 1, self._random.randrange(60), self._random.randrange(SEGMENT_MIN), SEGMENT_MIN - 1])
        if self._random.random() < self._large:
            size = self._random.choice([SEGMENT_MIN, self._random.randrange(SEGMENT_MIN, 9000)])
        return bytes(size) if not self._random.randrange(6) else self._random.randbytes(size)


def _sums(content: bytes) -> Sums:
    return Sums(hashlib.sha256(content).digest(), hashlib.sha1(b"blob %d\0" % len(content) + content).digest())


def _in_zip_order(things: dict[str, Planted], tree: StoredTree) -> bytes:
    """Return the secondary digests of all files, in the order of their data."""
    packed = b""
    for member in tree.members:
        if not member.is_folder and not member.is_link:
            thing = things[member.path]
            assert isinstance(thing, (bytes, Script))
            packed += b"".join(_sums(thing.content if isinstance(thing, Script) else thing))
    return packed


async def _edit_again_and_again(seed: int, wider: int, *, is_foreign: bool) -> None:
    random_ = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with memory_repository(folder) as repository:
            editor = _Editor(folder, repository, random_)
            if is_foreign:
                (folder / "foreign.zip").write_bytes(foreign_zip(editor.things, random_))
                tree = await StoredTree.open(repository, (await push(repository, folder / "foreign.zip")).record.digest)
            else:
                tree = await pushed_tree(repository, folder / "old", editor.things)
            for number in range(3):
                operations, contents = await editor.operations()
                known = _in_zip_order(editor.things, tree)
                editor.things = after(editor.things, operations, contents)
                with pytest.MonkeyPatch.context() as windows:
                    windows.setattr(push_module, "FIRST_WINDOW_SIZE", tree_chunker_module.WINDOW_MIN + wider)
                    windows.setattr(push_module, "WINDOW_SIZE", tree_chunker_module.WINDOW_MIN + 2 * wider)
                    result, tree = await edited(repository, tree, operations)
                expected = await pushed_manifest(folder / f"expected-{number}", editor.things)
                assert expected == result.manifest
                assert _in_zip_order(editor.things, tree) == result.tree_digests(known)


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(0, 1 << 40), st.integers(0, 3000))
def test_an_edit_gives_what_a_push_of_the_resulting_folder_gives(seed: int, wider: int) -> None:
    """After any operations, in three edits one after the other."""
    asyncio.run(_edit_again_and_again(seed, wider, is_foreign=False))


@pytest.mark.slow
@settings(max_examples=15)
@given(st.integers(0, 1 << 40), st.integers(0, 3000))
def test_an_edit_of_a_foreign_zip_gives_what_a_push_gives(seed: int, wider: int) -> None:
    """Its entries are in any order, some of them are deflated, and folders have entries of their own."""
    asyncio.run(_edit_again_and_again(seed, wider, is_foreign=True))
