"""Fault: a collection removes the chunks that it condemned, without looking again whether they are still condemned.

A push may have put such a chunk again, and its record may be committed since.

What prevents it: `Collection._remove_condemned` reads in its write transaction which rows are condemned, and removes
the frames of these only (I2).

What finds it: a push that is refused because of missing chunks, or by the check that a chunk stays during its grace
period.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from filestore.repository.maintenance.collect import Collection
from tests.simulation.planted.patching import rewritten_function


def planted() -> AbstractContextManager[None]:
    """Remove what was condemned."""
    return rewritten_function(
        Collection,
        "_remove_condemned",
        old="condemned = await transaction.condemned(self._namespace, list(by_digest))",
        new="condemned = list(by_digest)",
    )
