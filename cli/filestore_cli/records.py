"""The commands ls and info."""

from __future__ import annotations

import click

from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import ChunksMissing, InvalidContent, NotFound
from filestore.repository.protocol import Repository
from filestore_cli.context import CommandContext, Result, takes
from filestore_cli.entries import entry_info, show_entries
from filestore_cli.hints import HINTS
from filestore_cli.listing import Sort, is_pattern, list_records
from filestore_cli.lookup import record_of
from filestore_cli.parameters import Count
from filestore_cli.several import Failures, show_blocks
from filestore_cli.start import run_to_end
from filestore_cli.tensors import list_tensors
from filestore_cli.text import Rows, exactly, for_display, in_units, minute, table
from filestore_cli.versions import list_versions


@click.command(short_help="List stored files and directories.")
@click.argument("reference", metavar="[PATTERN|NAME|REFERENCE[:ENTRY]]", required=False)
@click.option("--limit", type=Count(min=1), metavar="COUNT", help="The largest number of files to list.  [default: all]")
@click.option(
    "--sort",
    type=click.Choice([str(order) for order in Sort]),
    help="The order of the stored files: age (the newest first), name, or size (the largest first).  [default: age]",
)
@click.option("--recursive", "-r", is_flag=True, help="Also list what is in the folders of a directory.")
@click.option("--tensors", is_flag=True, help="List the tensors of a safetensors or GGUF file: type, shape, size and name.")
@takes("url", "token")
def ls(
    context: CommandContext, reference: str | None, limit: int | None, *, sort: str | None, recursive: bool, tensors: bool
) -> None:
    """List the stored files and directories, the newest first.

    With a PATTERN, which has one of *, ? and [, list those whose names match it. With a name alone, list the versions of this
    name. With NAME:, NAME@REV, an id or a digest, list what is in that directory, or in a folder of it. This is read from
    its list of entries: its files are not fetched.
    """
    pattern = reference if reference is not None and is_pattern(reference) else None
    wanted = None if reference is None or pattern is not None else Reference.parse(reference)
    lists_versions = wanted is not None and _is_name_alone(wanted)
    if tensors and (wanted is None or recursive):
        raise click.UsageError("--tensors is for one file; give its reference, NAME or NAME:PATH, without --recursive")
    if recursive and (wanted is None or lists_versions):
        raise click.UsageError("--recursive is for what is in a directory; give its name with a ':' after it")
    if sort is not None and wanted is not None:
        raise click.UsageError("--sort is for the list of stored files; give no name, or a PATTERN")
    if wanted is None:
        run_to_end(list_records(context, pattern=pattern, sort=Sort(sort or Sort.AGE), limit=limit))
    elif tensors:
        run_to_end(list_tensors(context, wanted, limit=limit))
    elif lists_versions:
        run_to_end(list_versions(context, str(reference), limit))
    else:
        run_to_end(_list_entries(context, wanted, limit=limit, recursive=recursive))


async def _list_entries(context: CommandContext, reference: Reference, *, limit: int | None, recursive: bool) -> None:
    async with context.repository(read_only=True) as repository:
        await show_entries(context, repository, reference, limit=limit, recursive=recursive)


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
