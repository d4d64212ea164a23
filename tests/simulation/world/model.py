"""What must be true in a simulation: which stored files are there, and which bytes they and the fetched files have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Never

from filestore.core.digest import Digest
from filestore.core.records import Record

GRACE_SECONDS = 3600.0
"""The usual grace period of collections. A chunk that was asked for stays at least this long."""


class Fate(Enum):
    """What is known about a version.

    GONE: it was never pushed, or its removal was acknowledged.
    UNKNOWN: a push or a removal was not acknowledged, so that it may have happened.
    KEPT: its push was acknowledged, so it must be listed and be read back whole.
    """

    GONE = auto()
    UNKNOWN = auto()
    KEPT = auto()


@dataclass(eq=False, slots=True)
class Version:
    """One content under one name. Only its owner, a client, pushes and removes it, one after the other."""

    owner: str
    name: str
    content: bytes = field(repr=False)
    digest: Digest
    fate: Fate = Fate.GONE
    record: Record | None = None
    """Its record while it is kept."""
    is_busy: bool = False
    """Its owner pushes or removes it now."""


@dataclass(slots=True)
class Model:
    """What the processes of a simulation have said, in its own memory, which no simulated fault reaches."""

    fail: Callable[[str], Never]
    """Ends the simulation, with what is wrong."""
    grace_seconds: float = GRACE_SECONDS
    """The grace period of collections in this simulation."""
    versions: dict[tuple[str, Digest], Version] = field(default_factory=dict)
    targets: dict[Path, set[bytes | None]] = field(default_factory=dict)
    """What may be at the target of a fetch. None stands for no file."""
    counts: Counter[str] = field(default_factory=Counter)
    is_over: bool = False
    """The processes end after the step that they are at."""
    chunks_removed_at: float = -1.0
    """When a removal with chunks, or a jump of the clock, last could take chunks from a push in progress."""
    removing_chunks: set[str] = field(default_factory=set)
    """The clients whose removal with chunks is in progress, or was interrupted."""

    def goes_on(self) -> bool:
        """Return whether the processes do another step."""
        return not self.is_over

    def of(self, owner: str, fate: Fate) -> list[Version]:
        """Return the versions of a client that have a fate, and that it does not work on now."""
        return [each for each in self.versions.values() if each.owner == owner and each.fate is fate and not each.is_busy]

    def kept(self) -> list[Version]:
        """Return all versions that must be there, and that nobody works on now."""
        return [each for each in self.versions.values() if each.fate is Fate.KEPT and not each.is_busy]

    def begin_push(self, version: Version) -> None:
        """Note that its owner pushes a version. One that is kept stays kept."""
        self.versions.setdefault((version.name, version.digest), version)
        version.is_busy = True
        if version.fate is Fate.GONE:
            version.fate = Fate.UNKNOWN

    def begin_removal(self, version: Version, *, with_chunks: bool) -> None:
        """Note that its owner removes a version."""
        version.is_busy = True
        if with_chunks:
            self.removing_chunks.add(version.owner)
        version.fate = Fate.UNKNOWN

    def end_push(self, version: Version, record: Record) -> None:
        """Note that the push of a version was acknowledged by a record."""
        self.counts["pushes"] += 1
        if (record.name, record.digest, record.size) != (version.name, version.digest, len(version.content)):
            self.fail(f"the push of {version.name} was acknowledged by another record: {record}")
        if version.fate is Fate.KEPT and version.record is not None and version.record.id != record.id:
            self.fail(f"a second push of {version.name} has the record {record.id}, and the first one {version.record.id}")
        version.fate, version.record, version.is_busy = Fate.KEPT, record, False

    def end_removal(self, version: Version, *, now: float) -> None:
        """Note that the removal of a version was acknowledged."""
        if version.owner in self.removing_chunks:
            self.removing_chunks.remove(version.owner)
            self.chunks_removed_at = now
        self.counts["removals"] += 1
        version.fate, version.record, version.is_busy = Fate.GONE, None, False

    def interrupt(self, owner: str) -> None:
        """Note that a client stopped whatever it did: by an error, or because it was killed."""
        for version in self.versions.values():
            if version.owner == owner:
                version.is_busy = False

    def compare(self, records: Sequence[Record], *, is_quiet: bool) -> None:
        """Compare a listing with what must be true.

        With `is_quiet`, no process works on the repository, so what was unknown is known from now on.
        """
        listed: dict[tuple[str, Digest], Record] = {}
        for record in records:
            key = (record.name, record.digest)
            if key in listed:
                self.fail(f"one push of {record.name} made two records: {listed[key].id} and {record.id}")
            if key not in self.versions:
                self.fail(f"a record is listed that nobody has pushed: {record}")
            listed[key] = record
        for key, version in self.versions.items():
            found = listed.get(key)
            if version.is_busy:
                continue
            if version.fate is Fate.KEPT and (found is None or version.record is None or found.id != version.record.id):
                self.fail(f"{version.name} was acknowledged as {version.record} and is listed as {found}")
            if version.fate is Fate.GONE and found is not None:
                self.fail(f"the removal of {found} was acknowledged, and it is still listed")
            if version.fate is Fate.UNKNOWN and is_quiet:
                version.fate, version.record = (Fate.GONE, None) if found is None else (Fate.KEPT, found)
        if is_quiet:
            self.removing_chunks &= {version.owner for version in self.versions.values() if version.is_busy}

    def check_targets(self) -> None:
        """Compare the targets of fetches with what may be there. Call it between steps."""
        for path, allowed in self.targets.items():
            found = path.read_bytes() if path.exists() else None
            if found not in allowed:
                size = "no file" if found is None else f"{len(found)} bytes"
                self.fail(f"a fetch left at {path.name} what nobody has pushed there: {size}")
