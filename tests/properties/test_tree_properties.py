"""What is pushed of any tree on a disk is the zip that stands for it, in the chunks that the zip has, each byte read once."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Manifest
from filestore.transfer.sources import tree as tree_source_module
from filestore.transfer.sources.file import WINDOW_SIZE, CachedPush, FileSource, Source, read_exactly
from filestore.transfer.sources.tree import TreeSource
from filestore.transfer.sources.walk import Symlinks, walk
from tests.support.archives import zip_of
from tests.support.chunking import manifest_of
from tests.support.trees import Folder, Link, Planted, Script, entries_of, plant, random_things

SMALLEST_SEGMENT = 256 << 10


def _scanned(source: Source) -> tuple[Manifest, list[bytes]]:
    """The manifest, and every window as it was."""
    buffer = memoryview(bytearray(WINDOW_SIZE))
    windows = []
    while not source.is_finished:
        windows += [
            (bytes(window.content), [(digest, len(piece)) for digest, piece in window.hash()]) for window in source.scan(buffer)
        ]
    for content, chunks in windows:
        start = 0
        for digest, size in chunks:
            assert digest == chunk_digest(content[start : start + size])
            start += size
        assert len(content) == start
    return source.manifest(), [content for content, _ in windows]


def _content(thing: Planted) -> bytes:
    match thing:
        case Folder() | Link():
            return b""
        case Script(content):
            return content
        case content:
            return content


def _zip(things: dict[str, Planted]) -> bytes:
    return zip_of(entries_of(things), {name: _content(thing) for name, thing in things.items()})


things_on_disk = st.builds(
    lambda seed, count, large_count, link: {**random_things(seed, count=count, large_count=large_count), **link},
    st.integers(0, 1 << 30),
    st.integers(0, 40),
    st.integers(0, 3),
    st.sampled_from([{}, {"zz/link": Link("../zz-target"), "zz-target": b"x"}, {"zz/empty": Folder()}]),
)


@pytest.mark.slow
@settings(max_examples=25)
@given(things_on_disk)
def test_what_is_pushed_of_a_tree_is_its_zip(things: dict[str, Planted]) -> None:
    """Cut as the cutter cuts the whole zip, which `zipfile` finds sound; every byte of every file is read once, in order."""
    reads: dict[str, int] = {}

    def counted(descriptor: int, memory: memoryview, offset: int, path: str) -> None:
        assert reads.get(path, 0) == offset
        reads[path] = offset + len(memory)
        read_exactly(descriptor, memory, offset, path)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patches:
        root = plant(Path(folder) / "tree", things)
        patches.setattr(tree_source_module, "read_exactly", counted)
        with TreeSource(walk(root, symlinks=Symlinks.KEEP)) as source:
            manifest, _ = _scanned(source)
            source.check_unchanged()
            assert (source.file_count, source.size) == (source.files_done, manifest.size)
        sizes = {f"{root}/{name}": len(_content(thing)) for name, thing in things.items() if _content(thing)}

    archive = _zip(things)
    assert manifest_of(archive) == manifest
    assert sizes == reads
    with zipfile.ZipFile(io.BytesIO(archive)) as found:
        assert None is found.testzip()


@settings(max_examples=15)
@given(things_on_disk, st.randoms(use_true_random=False))
def test_a_tree_of_the_same_things_has_the_same_digest(things: dict[str, Planted], random_: object) -> None:
    """Whatever the order in which it was made, its times, the umask and the other permissions."""
    names = list(things)
    random_.shuffle(names)  # type: ignore[attr-defined]  # a `random.Random`, which Hypothesis does not say
    with tempfile.TemporaryDirectory() as folder:
        umask = os.umask(0o077)
        try:
            root = plant(Path(folder) / "other name", {name: things[name] for name in names})
        finally:
            os.umask(umask)
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(0o500 if path.stat().st_mode & 0o100 else 0o444)
                os.utime(path, (1, 1))
        with TreeSource(walk(root, symlinks=Symlinks.KEEP)) as source:
            assert manifest_of(_zip(things)).digest == _scanned(source)[0].digest


@settings(max_examples=15)
@given(st.integers(0, 1 << 30))
def test_large_files_have_the_chunks_that_they_have_alone(seed: int) -> None:
    """Each file of 256 KiB and more, as one stretch of the chunks of the tree."""
    with tempfile.TemporaryDirectory() as folder:
        things = random_things(seed, count=10, large_count=3)
        root = plant(Path(folder) / "tree", things)
        with TreeSource(walk(root)) as tree:
            row = bytes(_scanned(tree)[0].chunks.encoded)
        for name, thing in things.items():
            if len(_content(thing)) >= SMALLEST_SEGMENT:
                with FileSource(root / name) as file:
                    assert bytes(_scanned(file)[0].chunks.encoded) in row


@pytest.mark.slow
@settings(max_examples=25)
@given(things_on_disk, st.data())
def test_what_is_recalled_changes_nothing_but_the_reading(things: dict[str, Planted], data: st.DataObject) -> None:
    """After any change a source that recalls an earlier push gives what one that reads everything gives."""
    with tempfile.TemporaryDirectory() as folder:
        root = plant(Path(folder) / "tree", things)
        with TreeSource(walk(root, symlinks=Symlinks.KEEP)) as source:
            manifest, _ = _scanned(source)
            latest = max((state.ctime for state in walk(root).states if state is not None), default=0)
            cached = CachedPush(manifest, source.fingerprint(), max(latest, 1_900_000_000_000_000_000) + 10**18)
        files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
        changed = data.draw(st.sets(st.sampled_from(files), max_size=3)) if files else set()
        for path in changed:
            match data.draw(st.sampled_from(["remove", "write", "move", "mode"])):
                case "remove":
                    path.unlink()
                case "write":
                    path.write_bytes(b"other" + path.read_bytes()[5:])
                    os.utime(path, (1, 1))  # within one tick of the clock its times might stay as they were
                case "move":
                    path.rename(path.with_name("moved"[: 1 + len(path.name)]))
                case _:
                    path.chmod(path.stat().st_mode ^ 0o100)
        walked = walk(root, symlinks=Symlinks.KEEP)
        with TreeSource(walked) as whole, TreeSource(walked) as sparing:
            expected, _ = _scanned(whole)
            sparing.load_fingerprint(cached)
            read, _ = _scanned(sparing)
            assert expected == read
            assert whole.fingerprint() == sparing.fingerprint()
            assert whole.read >= sparing.read
            assert (sparing.file_count, sparing.size) == (sparing.files_done, read.size)
            if not changed:
                assert (0, sparing.size) == (sparing.read, sparing.cached_size)
