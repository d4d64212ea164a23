"""Fault: the row of a chunk is committed before its frame is in its place.

A process that ends in between leaves a row without a frame: pushes do not send this chunk any more.

What prevents it: `Ingest._publish` renames the frames and adds their rows inside one write transaction (I2), so the
commit of the rows comes after the frames are durable.

What finds it: the check after each power cut, which reports a frame that is missing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from filestore.repository.ingest import Ingest
from tests.simulation.planted.patching import rewritten_function

_PUBLISH = "await self._store.publish(self._namespace, [(row.digest, incoming.staging) for incoming, row in new.items()])"
_ROWS = """
        await transaction.add_chunks(self._namespace, list(new.values()))
        await transaction.refresh(self._namespace, list(live))
"""


def planted() -> AbstractContextManager[None]:
    """Rename the frames after the transaction."""
    return rewritten_function(Ingest, "_publish", old=f"{_PUBLISH}{_ROWS}", new=f"{_ROWS.lstrip()}    {_PUBLISH}\n")
