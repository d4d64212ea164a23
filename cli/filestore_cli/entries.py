"""Show what is in a stored directory, without fetching its files: for the commands ls and info."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

from filestore.core.references import Reference
from filestore.repository.protocol import Repository
from filestore.system.threads import in_cpu_thread
from filestore_cli.context import CommandContext, Result
from filestore_cli.lookup import record_of
from filestore_cli.text import Rows, exactly, for_display, in_units

if TYPE_CHECKING:
    # Heavy: the functions import these when they run.
    from filestore.core.records import Record
    from filestore.transfer.fetch_entry import FoundEntry
    from filestore.transfer.stored_tree import StoredEntry

_PAGE = 1000


async def show_entries(
    context: CommandContext, repository: Repository, reference: Reference, *, limit: int | None, recursive: bool
) -> None:
    """List what is in a directory or in a folder of it. A path that is a file is listed alone."""
    from filestore.transfer.stored_tree import EntryKind  # heavy

    record, found = await _found(context, repository, reference)
    is_folder = found.entry.kind is EntryKind.FOLDER
    entries = found.tree.entries(found.entry.path, recursive=recursive) if is_folder else iter((found.entry,))
    count = size = 0
    about = {"id": record.id, "name": record.name, "digest": str(record.digest), "repository": repository.location}
    before = f'{json.dumps(about)[:-1]}, "entries": ['
    entries = islice(entries, limit)
    while page := list(islice(entries, _PAGE)):
        count += len(page)
        size += sum(entry.size for entry in page)
        if context.json:
            context.write(before + ",\n".join(json.dumps(_as_json(entry)) for entry in page))
            before = ","
        else:
            context.write("\n".join(map(_line, page)))
    if context.json:
        context.write(f"{before if not count else ''}]}}")
    else:
        where = for_display(f"{record.full_name}:{found.entry.path}" if found.entry.path else record.full_name)
        context.write(
            f"{count} {'entry' if count == 1 else 'entries'}, {in_units(size)} in {where} in {context.place(repository)}"
        )


async def entry_info(context: CommandContext, repository: Repository, reference: Reference) -> tuple[Result, Rows]:
    """Return what is known about one entry of a directory: as JSON, and as rows for a person."""
    from filestore.transfer.fetch_entry import own_manifest  # heavy

    record, found = await _found(context, repository, reference)
    entry = found.entry
    manifest = await in_cpu_thread(own_manifest, found)
    digest = {} if manifest is None else {"digest": str(manifest.digest)}
    rows: Rows = {
        "path": for_display(entry.path),
        "kind": entry.kind.value,
        "size": exactly(entry.size),
        **({"executable": "yes"} if entry.is_executable else {}),
        **digest,
        "directory": for_display(record.full_name),
        "directory_id": record.id,
        "directory_digest": record.digest,
    }
    return {**_as_json(entry), **digest, "directory": record.as_json()}, rows


async def _found(context: CommandContext, repository: Repository, reference: Reference) -> tuple[Record, FoundEntry]:
    from filestore.transfer.fetch_entry import find_entry  # heavy

    record = await record_of(repository, reference.without_entry)
    return record, await find_entry(repository, record, reference, limits=context.settings.zip_limits)


def _as_json(entry: StoredEntry) -> dict[str, Any]:
    return {"path": entry.path, "kind": entry.kind.value, "size": entry.size, "is_executable": entry.is_executable}


def _line(entry: StoredEntry) -> str:
    kind = {"folder": "/", "link": "  (link)"}.get(entry.kind.value, "")
    size = "" if entry.kind.value == "folder" else in_units(entry.size)
    return f"{size:>8}  {for_display(entry.path)}{kind}"
