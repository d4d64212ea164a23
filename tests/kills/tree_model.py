"""The directories of the kills of fetches and pushes, and which of their chunks are on a disk."""

from __future__ import annotations

import os
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from filestore.backends import connect
from filestore.core.manifest import Manifest
from filestore.core.records import Record
from filestore.format.zip.read import TAIL_SIZE
from filestore.transfer.fetch import fetch
from filestore.transfer.fetch_tree import fetch_tree
from filestore.transfer.push import push
from tests.support.server import TOKEN
from tests.support.trees import Folder, Link, Planted, Script, plant

_BLOCK_SIZE = 700 << 10
_LINK = 0o12
"""The file type of a link, in the attributes of an entry of a zip."""


class Stored(NamedTuple):
    """A directory that was pushed."""

    things: Mapping[str, Planted]
    path: Path
    """The directory itself, which serves as a seed."""
    record: Record
    manifest: Manifest
    tail: bytes
    """The bytes of its zip from the central directory on."""
    members: list[_Member]


class _Member(NamedTuple):
    name: str
    content: bytes
    """The content of the file, or the target of the link."""
    header_start: int
    start: int
    """Where its content begins in the zip, after its header."""
    is_link: bool

    def is_part_at(self, path: Path, first: int, stop: int) -> bool:
        """Return whether `path` has the right content from `first` on, up to `stop`. A folder must be there."""
        try:
            if self.name.endswith("/"):
                return path.is_dir()
            if self.is_link:
                return os.fsencode(path.readlink()) == self.content
            with path.open("rb") as file:
                file.seek(first)
                return file.read(stop - first) == self.content[first:stop]
        except OSError:
            return False


def things(version: int) -> dict[str, Planted]:
    """Return the content of a directory. Versions have some of it in common."""
    blocks = [random.Random(number).randbytes(_BLOCK_SIZE) for number in range(version, version + 4)]
    return {
        "weights/0.bin": blocks[0],
        "weights/1.bin": blocks[1],
        "weights/2.bin": blocks[2] + blocks[1],
        "weights/3.bin": blocks[3],
        **{f"small/{number}.txt": b"%d of %d\n" % (number, version) * (number + 1) for number in range(12)},
        "run.sh": Script(b"#!/bin/sh\nexit %d\n" % version),
        "latest": Link("weights/2.bin"),
        "logs": Folder(),
    }


async def store_trees(folder: Path, url: str) -> tuple[Stored, Stored]:
    """Push two versions of a directory to a server. FOLDER/old and FOLDER/new are made."""
    old, new = [await _store(folder, url, name, things(version)) for version, name in enumerate(("old", "new"))]
    return old, new


async def _store(folder: Path, url: str, name: str, things: Mapping[str, Planted]) -> Stored:
    path = plant(folder / name, things)
    async with connect(url, token=TOKEN) as repository:
        record = (await push(repository, path, name=f"{name}.zip", symlinks="keep")).record
        await fetch(repository, record, target=folder / f"{name}.zip")
        fetched = await fetch_tree(repository, record, target=folder / f"{name}-again")
    members = _members((folder / f"{name}.zip").read_bytes(), folder / f"{name}.zip")
    return Stored(things, path, record, fetched.manifest, fetched.tail, members)


def _members(content: bytes, path: Path) -> list[_Member]:
    found = []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            # The lengths of name and extra field are those of the local header.
            lengths = content[info.header_offset + 26 : info.header_offset + 30]
            start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            is_link = info.external_attr >> 28 == _LINK
            found.append(_Member(info.filename, archive.read(info), info.header_offset, start, is_link))
    return found


def chunks_on_disk(place: Path, stored: Stored) -> set[str]:
    """Return the digests of the chunks whose content a killed fetch has left whole in its staging folder.

    The chunks of the end of the zip are left out: each fetch receives them to find the central directory.
    """
    staging = next(iter([*place.glob(".*.filestore-partial"), *place.glob("*/.*.filestore-partial")]), None)
    if staging is None:
        return set()
    found = set()
    end = stored.manifest.size - max(len(stored.tail), TAIL_SIZE)
    for chunk, offset in zip(stored.manifest.chunks, stored.manifest.offsets(), strict=True):
        if offset + chunk.size <= end and _is_whole(staging, stored.members, offset, offset + chunk.size):
            found.add(str(chunk.digest))
    return found


def _is_whole(staging: Path, members: list[_Member], start: int, stop: int) -> bool:
    parts = [member for member in members if member.header_start < stop and start < member.start + max(len(member.content), 1)]
    return bool(parts) and all(
        member.is_part_at(staging / member.name, max(start - member.start, 0), max(stop - member.start, 0)) for member in parts
    )
