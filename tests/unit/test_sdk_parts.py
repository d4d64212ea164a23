from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from filestore.errors import InvalidParts
from filestore.format.chunking import Chunker
from filestore.http.server.routes.sdk.parts import FilePart, PartsContent, unbroken
from filestore.http.server.routes.sdk.uploads import uploads_folder
from tests.support.chunking import manifest_of, scan
from tests.support.generator import octets
from tests.support.models import safetensors_file, tensor, torch_file

WEIGHTS = [tensor(str(seed), 1000, 1000, seed=seed) for seed in range(12)]
CONTENTS = {
    "octets": octets(1, 45_000_000),
    "safetensors": safetensors_file(WEIGHTS),
    "zip": torch_file(WEIGHTS),
    "small": b"content",
    "empty": b"",
}


def parts_of(folder: Path, content: bytes, size: int) -> list[FilePart]:
    """`content` in parts of `size` bytes."""
    parts = []
    for start in range(0, len(content), size):
        piece = content[start : start + size]
        path = folder / str(start)
        path.write_bytes(piece)
        parts.append(FilePart(start // size + 1, "tag", len(piece), path))
    return parts


def cut_in_turns(folder: Path, parts: Sequence[FilePart], *, keeps: bool) -> PartsContent:
    """All of the parts, one more at each turn, by one chunker, or by another one each time."""
    chunks, chunker = bytearray(), Chunker()
    for count in range(len(parts) + 1):
        content = PartsContent(folder, parts[:count], chunks, chunker, is_whole=False)
        scan(content)
        chunks = content.chunks
        chunker = chunker if keeps else Chunker()
    content = PartsContent(folder, parts, chunks, chunker, is_whole=True)
    scan(content)
    return content


@pytest.mark.slow
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("name", CONTENTS)
def test_parts_are_cut_as_the_file_that_they_make_up(tmp_path: Path, name: str, *, keeps: bool) -> None:
    """I8: however many turns it takes, and whoever takes them; one that begins anew looks through several windows."""
    content = CONTENTS[name]
    for size in (30_000_000, 7_000_001):
        cut = cut_in_turns(tmp_path, parts_of(tmp_path, content, size), keeps=keeps)
        assert manifest_of(content).digest == cut.manifest().digest
        assert (len(content), 1) == (cut.size, cut.files_done)


@pytest.mark.slow
def test_any_bytes_are_read_again(tmp_path: Path) -> None:
    """Across the ends of parts: a commit may want chunks again."""
    content = octets(2, 100_000)
    parts = PartsContent(tmp_path, parts_of(tmp_path, content, 7), bytearray(), Chunker(), is_whole=True)
    for start, end in ((0, 100_000), (6, 8), (7, 14), (99_999, 100_000), (5, 5)):
        memory = memoryview(bytearray(end - start))
        parts.read_into(memory, start)
        assert content[start:end] == memory


def test_a_part_that_is_gone_is_named(tmp_path: Path) -> None:
    """Or shorter than it was."""
    parts = parts_of(tmp_path, b"0123456789", 5)
    content = PartsContent(tmp_path, parts, bytearray(), Chunker(), is_whole=True)
    parts[1].path.write_bytes(b"567")
    with pytest.raises(InvalidParts, match="part 2 cannot be read any more"):
        content.read_into(memoryview(bytearray(10)), 0)
    parts[1].path.unlink()
    with pytest.raises(InvalidParts, match="part 2 was removed"):
        content.read_into(memoryview(bytearray(10)), 0)


def test_the_unbroken_run_begins_with_the_first_part() -> None:
    """And ends before the first that is not there."""

    def numbers(*arrived: int) -> list[int]:
        return [part.number for part in unbroken([FilePart(number, "tag", 1, Path()) for number in arrived])]

    assert [1, 2, 3] == numbers(3, 1, 2, 5)
    assert [] == numbers(2, 3)
    assert [] == numbers()


def test_each_repository_has_a_folder_for_its_uploads(tmp_path: Path) -> None:
    """Servers of several may share a spool folder."""
    folders = {uploads_folder(tmp_path, secret) for secret in (b"a" * 32, b"b" * 32, b"a" * 32)}
    assert 2 == len(folders)
