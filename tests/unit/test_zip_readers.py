"""What we take of a zip file is what unzip, bsdtar, 7z and Python's `zipfile` make of it, those of them that are installed."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from filestore.format.zip.structures import FLAG_DESCRIPTOR
from tests.support.archives import Forged, deflated, forged
from tests.support.fetching_trees import things_in
from tests.support.trees import Folder, Planted, Script, plant, standing

FIXTURES = Path(__file__).parents[1] / "golden/archives"
CONTENT = b"content " * 99
COMMANDS = {
    "unzip": ["unzip", "-q", "archive.zip", "-d"],
    "bsdtar": ["bsdtar", "-xf", "archive.zip", "-C"],
    "7z": ["7z", "x", "archive.zip"],
}
WITH_WARNINGS = {"unzip": 1, "bsdtar": 0, "7z": 1}
"""The status by which a tool says that it unpacked all, and warns."""


def streamed(**local: int) -> Forged:
    """A deflated entry with a descriptor, and these numbers in its local header."""
    data = deflated(CONTENT)
    descriptor = struct.pack("<4s3I", b"PK\7\10", zlib.crc32(CONTENT), len(data), len(CONTENT))
    return Forged("a", CONTENT, deflated=True, flags=FLAG_DESCRIPTOR, descriptor=descriptor, local={"crc": 0} | local)


def made() -> dict[str, bytes]:
    """Archives that break a rule of the format and mean one thing."""
    field = struct.pack("<HHQ", 1, 8, len(CONTENT))
    zip64_twice = Forged(
        "a", CONTENT, size=0xFFFFFFFF, local={"size": 0xFFFFFFFF}, extra=field + field, local_extra=field + field
    )
    folder, empty = Forged("folder/", mode=0o40755), Forged("empty/", mode=0o40755)
    return {
        "a folder named twice": forged([folder, empty, Forged("folder/a", CONTENT), folder, empty]),
        "saturated local sizes": forged([streamed(size=0xFFFFFFFF, stored_size=0xFFFFFFFF), Forged("b", CONTENT)]),
        "a Zip64 field twice": forged([zip64_twice, Forged("b", CONTENT)]),
        "CR LF behind the end": forged([Forged("a", CONTENT)]) + b"\r\n",
        "a FIFO with content": forged([Forged("-", CONTENT, mode=0o010600)]),
    }


FIXTURE_NAMES = ("infozip-stdin.zip", "infozip-stdin-streamed.zip", "bsdtar-folders-twice.zip")
ARCHIVES = made() | {name: (FIXTURES / name).read_bytes() for name in FIXTURE_NAMES}


def files_of(things: Mapping[str, Planted]) -> dict[str, Planted]:
    """Files without permissions, which not every tool keeps."""
    return {path: thing.content if isinstance(thing, Script) else thing for path, thing in things.items() if thing != Folder()}


@pytest.mark.parametrize("tool", ["unzip", "bsdtar", "7z", "zipfile"])
@pytest.mark.parametrize("name", ARCHIVES)
def test_what_we_take_is_what_other_tools_read(name: str, tool: str, tmp_path: Path) -> None:
    """A tool that unpacks the archive makes the same files of it. One that is not installed, or refuses it, says nothing."""
    ours = files_of(things_in(ARCHIVES[name]))
    target = plant(tmp_path / "target", {})
    (tmp_path / "archive.zip").write_bytes(ARCHIVES[name])

    if tool == "zipfile":
        with zipfile.ZipFile(tmp_path / "archive.zip") as archive:
            archive.extractall(target)
    elif shutil.which(tool) is None or not has_unpacked(tool, target):
        return
    assert ours == files_of(standing(target))


def has_unpacked(tool: str, target: Path) -> bool:
    """Return whether a tool unpacked the archive next to `target`."""
    place = f"-o{target}" if tool == "7z" else str(target)
    done = subprocess.run([*COMMANDS[tool], place], capture_output=True, check=False, cwd=target.parent, stdin=subprocess.DEVNULL)
    return done.returncode in {0, WITH_WARNINGS[tool]}
