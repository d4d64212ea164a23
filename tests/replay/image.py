"""What is on a disk: folders, files and symbolic links."""

from __future__ import annotations

import os
from pathlib import Path

from blake3 import blake3

_LARGE_SIZE = 1 << 20


class Image:
    """Folders, files and symbolic links, by their paths below the root of a disk."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self._parts: list[bytes] = []

    def add_folder(self, path: str) -> None:
        self.folders.append(path)
        self._parts.append(b"%s\0/\0" % os.fsencode(path))

    def add_file(self, path: str, content: bytes, digest: bytes) -> None:
        self.files[path] = content
        self._parts.append(b"%s\0%s" % (os.fsencode(path), digest))

    def add_link(self, path: str, target: str) -> None:
        self.links[path] = target
        self._parts.append(b"%s\0>%s\0" % (os.fsencode(path), os.fsencode(target)))

    @property
    def digest(self) -> bytes:
        """The same for equal images only."""
        return blake3(b"\n".join(sorted(self._parts))).digest()

    def write(self, root: Path) -> None:
        """Make the folders and files below `root`, an empty folder."""
        top = os.fspath(root)
        for path in self.folders:
            os.mkdir(f"{top}/{path}", 0o700)  # noqa: PTH102  # thousands of images: a Path takes longer than the call
        for path, content in self.files.items():
            descriptor = os.open(f"{top}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                # The reserve is only zeros, which need no memory.
                if len(content) >= _LARGE_SIZE and content.count(0) == len(content):
                    os.ftruncate(descriptor, len(content))
                else:
                    os.write(descriptor, content)
            finally:
                os.close(descriptor)
        for path, target in self.links.items():
            os.symlink(target, f"{top}/{path}")  # noqa: PTH211  # as above
