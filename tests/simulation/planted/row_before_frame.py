"""Fault: the row of a chunk is committed before its frame is in its place.

A process that ends in between leaves a row without a frame: pushes do not send this chunk any more.

What prevents it: `Group.write` renames the frames and then adds their rows, in one write transaction (I2), so the commit of
the rows comes after the frames are durable.

What finds it: the check after each power cut, which reports a frame that is missing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from filestore.repository.ingest import Ingest
from tests.simulation.planted.patching import rewritten_function

_PLACEMENT = "self._store.placement(self._namespace, list(staged.items()))"
_ROWS = "new = await self._index.publish(FramePublication(self._namespace, list(rows.values()), placement, self._quota))"


def planted() -> AbstractContextManager[None]:
    """Rename the frames after the transaction."""
    late = f"{_ROWS}; await self._store.publish(self._namespace, list(staged.items()))"
    old, new = f"{_PLACEMENT}\n    {_ROWS}", f"self._store.placement(self._namespace, [])\n    {late}"
    return rewritten_function(Ingest, "_publish", old=old, new=new)
