"""Damage files of a repository in every way in which a disk or a user does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from filestore.core.digest import chunk_digest
from filestore.format.codec import HEADER_SIZE, Codec, Encoder
from tests.support.generator import octets

_SOURCE = Path(__file__).with_name("bad_sectors.c")


class BadSectors:
    """Files that cannot be read, for each process that has the environment `environ`."""

    def __init__(self, folder: Path) -> None:
        """Compile the library. `folder` must be on the file system of the files."""
        library, self._list, self._folder = folder / "bad_sectors.so", folder / "bad_sectors", folder
        subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True)
        self._list.touch()
        self.environ = {"LD_PRELOAD": str(library), "TEST_BAD_SECTORS": str(self._list)}

    def add(self, path: Path, kind: str) -> None:
        """Have the content of a file or folder be unreadable, or with the kind `open` its inode too."""
        found = path.stat()
        if not path.is_dir():
            # As long as this name exists, no other file gets the number of the inode.
            (self._folder / f"bad-{found.st_ino}").hardlink_to(path)
        with self._list.open("a") as file:
            file.write(f"{kind} {found.st_dev} {found.st_ino}\n")


def delete(path: Path, _: BadSectors) -> None:
    """Remove a file."""
    path.unlink()


def shorten(path: Path, _: BadSectors) -> None:
    """Remove the second half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path, _: BadSectors) -> None:
    """Remove all bytes of a file."""
    os.truncate(path, 0)


def zero(path: Path, _: BadSectors) -> None:
    """Have a file be zeros, as after a power cut."""
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path, _: BadSectors) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def grow(path: Path, _: BadSectors) -> None:
    """Append bytes to a file."""
    with path.open("ab") as file:
        file.write(b"appended" * 1000)


def replace(path: Path, _: BadSectors) -> None:
    """Have a file be a larger frame, of another chunk."""
    content = octets(99, path.stat().st_size * 2)
    out = bytearray(len(content) + HEADER_SIZE)
    size = Encoder(codec=Codec.RAW).encode(memoryview(content), memoryview(out))
    assert chunk_digest(content).hex() != path.name
    path.write_bytes(out[:size])


def make_folder(path: Path, _: BadSectors) -> None:
    """Have a folder with something in it be in the place of a file."""
    path.unlink()
    path.mkdir()
    (path / "something").write_bytes(b"of a user")


def cut_link(path: Path, _: BadSectors) -> None:
    """Have a link that leads nowhere be in the place of a file."""
    path.unlink()
    path.symlink_to("nowhere")


def make_loop(path: Path, _: BadSectors) -> None:
    """Have a link to itself be in the place of a file."""
    path.unlink()
    path.symlink_to(path.name)


def make_pipe(path: Path, _: BadSectors) -> None:
    """Have a pipe that nobody writes to be in the place of a file."""
    path.unlink()
    os.mkfifo(path)


def spoil_content(path: Path, bad_sectors: BadSectors) -> None:
    """Have the content of a file be on a bad sector."""
    bad_sectors.add(path, "read")


def spoil_inode(path: Path, bad_sectors: BadSectors) -> None:
    """Have the inode of a file be on a bad sector."""
    bad_sectors.add(path, "open")


DAMAGES: dict[str, Callable[[Path, BadSectors], None]] = {
    "deleted": delete,
    "short": shorten,
    "empty": empty,
    "zeroed": zero,
    "flipped": flip,
    "grown": grow,
    "replaced": replace,
    "folder": make_folder,
    "dangling-link": cut_link,
    "loop": make_loop,
    "pipe": make_pipe,
    "bad-content": spoil_content,
    "bad-inode": spoil_inode,
}
"""Every way to damage a file."""
