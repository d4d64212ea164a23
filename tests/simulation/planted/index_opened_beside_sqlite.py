"""Fault: a process opens the file of the index and closes it again, beside SQLite.

Closing any descriptor of a file drops all POSIX locks that the process holds on it, also those of SQLite. Another
process then believes that nobody uses the index, and removes its log.

What prevents it: `filestore/repository/index/replaced.py` compares the files of the index by `stat`, before and after
each write, and never opens them.

What finds it: the kernel, which sees that a process has the file of the index open without its lock.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from filestore.repository.index import replaced
from tests.simulation.planted.patching import rewritten_function


def planted() -> AbstractContextManager[None]:
    """Look at the files of the index through a descriptor."""
    return rewritten_function(
        replaced,
        "file_id",
        old="found = os.stat(path)",
        new="descriptor = os.open(path, os.O_RDONLY); found = os.fstat(descriptor); os.close(descriptor)",
    )
