"""Fault: a commit counts a condemned row as live.

The collection that condemned it removes its frame after the record was committed.

What prevents it: `select_live`, by which `commit` and `missing` look for the chunks of a file, reads only rows with
`going = 0` (I2).

What finds it: a fetch or a push of a file whose chunks are missing, or the check that each file is read back at the
end.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from filestore.repository.index import chunks
from tests.simulation.planted.patching import rewritten_text


def planted() -> AbstractContextManager[None]:
    """Read condemned rows as if they were live."""
    return rewritten_text(chunks, "_LIVE", old="AND going = 0 AND", new="AND")
