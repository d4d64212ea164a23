"""The names of objects in an object store."""

from __future__ import annotations

from typing import NamedTuple

from filestore.core.digest import Digest

OBJECT_ID_SIZE = 8
NO_OBJECT_ID = b""
"""In a store whose frames and manifests have their digests as names."""


class ObjectName(NamedTuple):
    """What names a stored frame or manifest.

    In an object store, each put makes a new object, with an id of its own. So no name is ever used twice, and a removal that is
    carried out late cannot remove what was put since.
    """

    digest: Digest
    object_id: bytes = NO_OBJECT_ID
    """`OBJECT_ID_SIZE` random bytes, or `NO_OBJECT_ID`."""


class FrameObject(NamedTuple):
    """The object of a frame."""

    object_id: bytes
    stored_size: int
    """Its size in bytes."""
