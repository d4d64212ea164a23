"""What makes bytes and names outlive a power cut."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path


def sync_descriptor(descriptor: int) -> None:
    """Have the disk keep all that was written to a file, or the names in a folder. Blocks. Raises OSError."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # its fsync leaves the bytes in the drive's own memory
    else:
        os.fsync(descriptor)


def sync_path(path: Path) -> None:
    """`sync_descriptor` for a file or a folder by its path."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)
