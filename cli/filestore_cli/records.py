"""The commands ls and info."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import click

from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import ChunksMissing, InvalidContent, NotFound
from filestore.repository.protocol import Repository
from filestore_cli.context import CommandContext, Result, takes
from filestore_cli.entries import entry_info, show_entries
from filestore_cli.hints import HINTS
from filestore_cli.lookup import record_of
from filestore_cli.parameters import Count
from filestore_cli.several import Failures, show_blocks
from filestore_cli.start import run_to_end
from filestore_cli.text import Rows, exactly, for_display, in_units, minute, table
from filestore_cli.versions import list_versions

_PAGE = 1000


@click.command(short_help="List stored files and directories.")
@click.argument("reference", metavar="[NAME|REFERENCE[:FOLDER]]", required=False)
@click.option("--limit", type=Count(min=1), metavar="COUNT", help="The largest number of files to list.  [default: all]")
@click.option("--recursive", "-r", is_flag=True, help="Also list what is in the folders of a directory.")
@takes("url", "token")
def ls(context: CommandContext, reference: str | None, limit: int | None, *, recursive: bool) -> None:
    """List the stored files and directories, the newest first.

    With a name alone, list the versions of this name. With NAME:, NAME@REV, an id or a digest, list what is in that
    directory, or in a FOLDER of it. This is read from its list of entries: its files are not fetched.
    """
    wanted = None if reference is None else Reference.parse(reference)
    lists_versions = wanted is not None and _is_name_alone(wanted)
    if recursive and (wanted is None or lists_versions):
        raise click.UsageError("--recursive is for what is in a directory; give its name with a ':' after it")
    if reference is not None and lists_versions:
        run_to_end(list_versions(context, reference, limit))
        return

    async def run() -> None:
        async with context.repository(read_only=True) as repository:
            if wanted is not None:
                await show_entries(context, repository, wanted, limit=limit, recursive=recursive)
                return
            count = size = 0
            before = '{"files": ['
            async for records in _pages(repository, limit):
                count += len(records)
                size += sum(record.size for record in records)
                if context.json:
                    context.write(before + ",\n".join(json.dumps(record.as_json()) for record in records))
                    before = ","
                else:
                    context.write("\n".join(map(record_line, records)))
            if context.json:
                context.write(f'{before if not count else ""}], "repository": {json.dumps(repository.location)}}}')
            else:
                context.write(f"{_count(count, size)} in {context.place(repository)}")

    run_to_end(run())


@click.command(short_help="Show stored files and directories.")
@click.argument("references", metavar="ID|DIGEST|PATH|NAME[@REV][:ENTRY]...", nargs=-1, required=True)
@takes("url", "token")
def info(context: CommandContext, references: tuple[str, ...]) -> None:
    """Show stored files and directories, or entries of directories. A name means the newest record of that name."""
    failures = Failures() if len(references) > 1 else Failures.raised()

    async def run() -> None:
        shown: list[tuple[Result, Rows]] = []
        async with context.repository(read_only=True) as repository:
            for reference in failures.each(references, str):
                with failures.of(reference):
                    shown.append(await _info(context, repository, Reference.parse(reference)))
            place, location = context.place(repository), {"repository": repository.location}
        if len(references) == 1:
            [(result, rows)] = shown
            context.show({**result, **location}, *table(**rows, repository=place))
            return
        results = {"files": [result for result, _ in shown], "failed": failures.as_json("reference"), **location}
        show_blocks(context, results, [table(**rows) for _, rows in shown], place=place, failures=failures)

    run_to_end(run())


async def _info(context: CommandContext, repository: Repository, wanted: Reference) -> tuple[Result, Rows]:
    if wanted.entry_path:
        return await entry_info(context, repository, wanted)
    record = await record_of(repository, wanted.without_entry)
    return _record_info(record, warning=await _warning(repository, record))


def _is_name_alone(reference: Reference) -> bool:
    """Return whether a reference means a name with all of its versions, and not one state of it."""
    is_name = reference.name is not None and reference.digest is None
    return is_name and reference.revision is None and reference.entry_path is None


async def _pages(repository: Repository, limit: int | None) -> AsyncIterator[list[Record]]:
    """Yield the newest records, as they were at one moment, some at a time."""
    if limit is not None and limit <= _PAGE:
        if records := await repository.records(limit=limit):
            yield records
        return
    records, count = [], 0
    async with aclosing(repository.iter_records()) as found:
        async for record in found:
            records.append(record)
            count += 1
            if len(records) == _PAGE or count == limit:
                yield records
                records = []
            if count == limit:
                break
    if records:
        yield records


async def _warning(repository: Repository, record: Record) -> str | None:
    """Return what a user of the record should know about its content."""
    from filestore.transfer.repeated_names import find_repeated_names, repeated_names_warning  # heavy

    try:
        warning = repeated_names_warning(await find_repeated_names(repository, record))
    except (NotFound, InvalidContent, ChunksMissing):
        # The command shows the record, also of damaged content.
        return None
    return None if warning is None else f"{warning}; {HINTS['store-folder']}"


def _record_info(record: Record, *, warning: str | None = None) -> tuple[Result, Rows]:
    result = record.as_json()
    rows: Rows = {
        "id": record.id,
        "digest": record.digest,
        "path": for_display(record.path),
        "name": for_display(record.full_name),
        "size": exactly(record.size),
        "kind": record.kind.value,
        "namespace": record.namespace,
        "created": minute(record.created_at),
        "updated": minute(record.updated_at),
    }
    if warning is not None:
        return {**result, "warning": warning}, {**rows, "warning": for_display(warning)}
    return result, rows


def record_line(record: Record) -> str:
    """Return a record as a line for a person."""
    kind = "  (directory)" if record.kind is Kind.DIRECTORY else ""
    return f"{record.id}  {in_units(record.size):>8}  {minute(record.updated_at)}  {for_display(record.full_name)}{kind}"


def _count(count: int, size: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}, {in_units(size)}"
