"""Remember beside an index which commit was the last one, to notice an index that was replaced by an older one.

The file `last-commit` has the id of the index and its number of commits. It is written after each commit of a record,
in place and without a sync: 71 bytes in one block, with a checksum. So after a crash it has an old text, the new one,
or none that can be read; it never names a commit that the index has not kept, because the index is synced before.
Processes that commit at the same time may write it in the wrong order. Then it names the last commit but one, which
does not matter: an index that has more commits is right.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from filestore.errors import IndexDamaged
from filestore.repository.index.protocol import IndexVersion

_LINE = re.compile(rb"(([0-9a-f]{32}) ([0-9]{20})) ([0-9a-f]{16})\n\Z")


class LastCommit:
    """The file `path`, which need not exist. All methods block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> IndexVersion | None:
        """Return what the file says, or None if it does not exist or cannot be read. Call this before the index is read."""
        try:
            found = _LINE.match(self._path.read_bytes())
        except OSError:
            return None
        if found is None or _checksum(found[1]) != found[4]:
            return None
        return IndexVersion(found[2].decode(), int(found[3]))

    def write(self, version: IndexVersion) -> None:
        """Write the file. A failure is ignored: the commit is done, and a file with an older commit does no harm."""
        text = b"%s %020d" % (version.index_id.encode(), version.commits)
        with suppress(OSError):
            with suppress(FileNotFoundError):
                if self._path.stat().st_nlink > 1:
                    # Another folder has the same file, as after `cp -l`, and another index.
                    self._path.unlink()
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, b"%s %s\n" % (text, _checksum(text)), 0)
            finally:
                os.close(descriptor)


def check_version(path: str, found: IndexVersion | None, kept: IndexVersion | None) -> None:
    """Raise IndexDamaged if the index at `path` is not the one that `kept` names, or has fewer commits."""
    if kept is None:
        return
    if found is None or found.index_id != kept.index_id:
        raise IndexDamaged(path, "it is not the index with which this repository was last written")
    if found.commits < kept.commits:
        reason = f"it is an older copy: it has {found.commits} commits, and the last commit to this repository was number"
        raise IndexDamaged(path, f"{reason} {kept.commits}")


def _checksum(text: bytes) -> bytes:
    return blake3(text).hexdigest()[:16].encode()
