"""The keys of objects below the prefix of a repository.

frames/NAMESPACE/AA/DIGEST.ID     frames; AA are the first two digits of the digest, and the id has 16 hexadecimal digits
manifests/NAMESPACE/AA/DIGEST.ID  manifests
damaged/NAMESPACE/DIGEST.ID       what was set aside because it is not the frame that its row names
uploads/...                       uploads in parts
format.json                       the repository's format file
format/...                        proposals for it, in a store without conditional puts
clock                             an empty object, put again to learn the time of the store
"""

from __future__ import annotations

import re
from typing import Final

from filestore.core.digest import Digest
from filestore.core.object_names import OBJECT_ID_SIZE, ObjectName

FRAMES: Final = "frames"
MANIFESTS: Final = "manifests"
UPLOADS: Final = "uploads"
FORMAT_KEY: Final = "format.json"
PROPOSALS: Final = "format"
CLOCK_KEY: Final = "clock"
_NAME = re.compile(rf"[0-9a-f]{{64}}\.[0-9a-f]{{{2 * OBJECT_ID_SIZE}}}\Z")


def frame_key(namespace: str, name: ObjectName) -> str:
    """Return the key of the object of a frame."""
    return f"{FRAMES}/{namespace}/{_hashed(name)}"


def manifest_key(namespace: str, name: ObjectName) -> str:
    """Return the key of the object of a manifest."""
    return f"{MANIFESTS}/{namespace}/{_hashed(name)}"


def damaged_key(namespace: str, name: ObjectName) -> str:
    """Return the key under which a frame is set aside."""
    return f"damaged/{namespace}/{name.digest}.{name.object_id.hex()}"


def parse_key(key: str) -> ObjectName | None:
    """Return the name in the key of a frame or a manifest. Return None for the key of anything else."""
    name = key.rpartition("/")[2]
    if not _NAME.match(name):
        return None
    digest, _, object_id = name.partition(".")
    return ObjectName(Digest.parse(digest), bytes.fromhex(object_id))


def _hashed(name: ObjectName) -> str:
    text = name.digest.hex()
    return f"{text[:2]}/{text}.{name.object_id.hex()}"
