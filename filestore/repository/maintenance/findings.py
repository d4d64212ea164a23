"""What a check of a repository finds: damage, what can be reclaimed, and the files that damage affects."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from filestore.core.digest import Digest
from filestore.core.records import Record


class FindingKind(StrEnum):
    """What is wrong. `digest` of the finding names the chunk or the manifest.

    FRAME_MISSING: A live row has no frame.
    FRAME_SHORT: A frame has fewer bytes than its row states.
    FRAME_GROWN: A frame has more bytes than its row states.
    FRAME_CHANGED: A frame has its size, but other bytes: zeros or flipped bits.
    FRAME_NO_FILE: A folder, a device or a link that leads nowhere is in the place of a frame.
    FRAME_UNREADABLE: The disk cannot read a frame.
    ROW_WRONG: A frame is intact, but its row states another size or frame digest.
    FRAME_WITHOUT_ROW: No row knows a frame. This is not damage: an interrupted push leaves such frames.
    CHUNK_WITHOUT_ROW: A manifest of a record names a chunk that has no live row.
    MANIFEST_MISSING: A record has no manifest.
    MANIFEST_DAMAGED: The manifest of a record cannot be read, or has another digest.
    MANIFEST_WITHOUT_RECORD: No record needs a manifest. This is not damage.
    RECORD_INVALID: A record of the index has values that no program of ours writes.
    INDEX_DAMAGED: The file of the index is damaged, or has rows that no program of ours writes.
    FOLDER_UNREADABLE: The disk cannot list a folder of frames or manifests.
    """

    FRAME_MISSING = "frame-missing"
    FRAME_SHORT = "frame-short"
    FRAME_GROWN = "frame-grown"
    FRAME_CHANGED = "frame-changed"
    FRAME_NO_FILE = "frame-no-file"
    FRAME_UNREADABLE = "frame-unreadable"
    ROW_WRONG = "row-wrong"
    FRAME_WITHOUT_ROW = "frame-without-row"
    CHUNK_WITHOUT_ROW = "chunk-without-row"
    MANIFEST_MISSING = "manifest-missing"
    MANIFEST_DAMAGED = "manifest-damaged"
    MANIFEST_WITHOUT_RECORD = "manifest-without-record"
    RECORD_INVALID = "record-invalid"
    INDEX_DAMAGED = "index-damaged"
    FOLDER_UNREADABLE = "folder-unreadable"


RECLAIMABLE = frozenset({FindingKind.FRAME_WITHOUT_ROW, FindingKind.MANIFEST_WITHOUT_RECORD})
"""The kinds that are not damage. A collection removes what they name."""

FRAME_LOST = frozenset(
    {
        FindingKind.FRAME_MISSING,
        FindingKind.FRAME_SHORT,
        FindingKind.FRAME_GROWN,
        FindingKind.FRAME_CHANGED,
        FindingKind.FRAME_NO_FILE,
        FindingKind.FRAME_UNREADABLE,
    }
)
"""The kinds that mean: a live row has no frame that can be read, so the chunk must be sent again or found elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a check found."""

    kind: FindingKind
    namespace: str | None = None
    """None if the finding concerns the whole index."""
    digest: Digest | None = None
    """The digest of the chunk or of the manifest. None if the finding concerns neither."""
    detail: str
    """What was found, as a clause for a message, such as `it has 12 bytes, and its row states 4096`."""
    stored_size: int = 0
    """The bytes that the frame or the manifest takes. For FRAME_WITHOUT_ROW, this is what a collection frees."""
    record: Record | None = None
    """The record whose manifest is concerned. None for a finding about a frame: see `AffectedFile`."""

    @property
    def is_damage(self) -> bool:
        """Whether content or the index is damaged. If not, the finding only names what a collection removes."""
        return self.kind not in RECLAIMABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class AffectedFile:
    """A stored file that cannot be read as a whole."""

    record: Record
    damaged_count: int
    """How many of its chunks are damaged or missing. 0 if its manifest is."""
    chunk_count: int
    """How many chunks it has. 0 if its manifest is missing or damaged."""
