"""Fault: a commit whose answer was lost is sent again, and makes a second record.

What prevents it: a namespace has one row for a name, a kind and a digest (the UNIQUE constraint of `records`), and
`insert_record` updates it if it exists.

What finds it: the check that a version has one record, after a push and in a listing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filestore.repository.index import records, schema
from tests.simulation.planted.patching import rewritten_text

_UPDATE = (
    " ON CONFLICT (namespace, name, kind, digest) DO UPDATE SET updated_at = excluded.updated_at, position = excluded.position,"
    " manifest_size = excluded.manifest_size"
)


@contextmanager
def planted() -> Iterator[None]:
    """Insert a row for each commit."""
    unique = "PRIMARY KEY (namespace, id),\n        UNIQUE (namespace, name, kind, digest)"
    with (
        rewritten_text(schema, "_SCHEMA", old=unique, new="PRIMARY KEY (namespace, id)"),
        rewritten_text(records, "_INSERT", old=_UPDATE, new=""),
    ):
        yield
