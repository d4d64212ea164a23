"""Show what a check of a repository finds to a person or a program."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from filestore.core.names import DEFAULT_NAMESPACE
from filestore_cli.text import for_display

if TYPE_CHECKING:
    # Heavy: the command imports it when it runs.
    from filestore.repository.maintenance.findings import AffectedFile, Finding
    from filestore.repository.maintenance.hold import Hold


def finding_words(finding: Finding) -> str:
    """Return a line about a finding."""
    what = finding.kind.value.partition("-")[0]
    digest = "" if finding.digest is None else f" {finding.digest}"
    # Almost every repository has one namespace.
    where = f"[{finding.namespace}] " if finding.namespace not in {None, DEFAULT_NAMESPACE} else ""
    return for_display(f"{where}{what}{digest}: {finding.detail} ({finding.kind})")


def file_words(file: AffectedFile) -> str:
    """Return a line about a file that damage affects."""
    parts = "its manifest" if not file.chunk_count else f"{file.damaged_count} of {number_of(file.chunk_count, 'chunk')}"
    where = f"[{file.record.namespace}] " if file.record.namespace != DEFAULT_NAMESPACE else ""
    return for_display(f"{where}{file.record.id}  {file.record.full_name}  ({parts})")


def hold_lines(holds: Iterable[Hold], *, ended: bool = False) -> list[str]:
    """Return a line about each namespace whose collection is held, or was until now."""
    if ended:
        return [for_display(f"ended     the hold of the namespace {hold.namespace}") for hold in holds]
    return [
        for_display(
            f"held      [{hold.namespace}] {number_of(hold.manifest_count, 'manifest')} had no record, because {hold.reason};"
            " nothing is removed until `filestore gc --end-hold`. Before that, push the files again or restore a newer backup"
        )
        for hold in holds
    ]


def finding_as_json(finding: Finding) -> dict[str, object]:
    """Return a finding as a JSON object."""
    return {
        "kind": finding.kind.value,
        "namespace": finding.namespace,
        "digest": None if finding.digest is None else str(finding.digest),
        "detail": finding.detail,
        "file_id": None if finding.record is None else finding.record.id,
    }


def file_as_json(file: AffectedFile) -> dict[str, object]:
    """Return a file that damage affects as a JSON object."""
    return {**file.record.as_json(), "damaged_count": file.damaged_count, "chunk_count": file.chunk_count}


def number_of(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun, such as `1 chunk` and `2 chunks`."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"
