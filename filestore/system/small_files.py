"""Read small files that anyone may have replaced: by a link, a pipe, or a file without end (I4).

A cache reads many such files. Its folder may be shared, or have come from elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from filestore.core.records import parse_json

JSON_LIMIT = 4 << 20
"""Bytes of the largest JSON file that is read."""


def read_small(path: Path, *, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes. Blocks.

    Raises OSError for a larger file too, and for a link or anything else that is not a regular file.
    """
    descriptor, size = _open(path)
    try:
        # A read first takes as much memory as it may return.
        content = os.read(descriptor, min(size, limit) + 1)
        while len(content) != size and len(content) <= limit and (more := os.read(descriptor, limit + 1 - len(content))):
            content += more  # the file is growing
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return content


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Blocks. Raises OSError, also for a link and for anything else."""
    descriptor, _ = _open(path)
    return os.fdopen(descriptor, "rb")


def _open(path: Path) -> tuple[int, int]:
    """Open a regular file. Return its descriptor and its size."""
    # Without O_NONBLOCK, the open of a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor, status.st_size


def read_json(path: Path) -> Any:
    """Return the value in a small JSON file. Blocks. Raises OSError as `read_small` does, and ValueError as `parse_json`."""
    return parse_json(read_small(path, limit=JSON_LIMIT))
