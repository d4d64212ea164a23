"""The commands ls and info."""

from __future__ import annotations

from typing import Any

import click

from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import ChunksMissing, InvalidContent, NotFound
from filestore.repository.protocol import Repository
from filestore_cli.context import CommandContext, takes
from filestore_cli.hints import HINTS
from filestore_cli.lookup import record_of
from filestore_cli.start import run_to_end
from filestore_cli.text import exactly, for_display, in_units, minute, table

_PAGE = 1000


class Count(click.IntRange):
    """A whole number from 1."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} cannot be used; a whole number from 1 is expected", param, ctx)


@click.command(short_help="List stored files and directories.")
@click.option("--limit", type=Count(min=1), metavar="COUNT", help="The largest number of files to list.  [default: all]")
@takes("url", "token")
def ls(context: CommandContext, limit: int | None) -> None:
    """List the stored files and directories, the newest first."""

    async def run() -> None:
        async with context.repository(read_only=True) as repository:
            records = await _newest(repository, limit)
            context.show(
                {"files": [record.as_json() for record in records], "repository": repository.location},
                *(record_line(record) for record in records),
                f"{_count(records)} in {context.place(repository)}",
            )

    run_to_end(run())


@click.command(short_help="Show one stored file or directory.")
@click.argument("reference", metavar="ID|DIGEST|PATH|NAME[@REV]")
@takes("url", "token")
def info(context: CommandContext, reference: str) -> None:
    """Show one stored file or directory. A name means the newest record of that name."""

    async def run() -> None:
        async with context.repository(read_only=True) as repository:
            record = await record_of(repository, Reference.parse(reference))
            _show_record(context, repository, record, warning=await _warning(repository, record))

    run_to_end(run())


async def _newest(repository: Repository, limit: int | None) -> list[Record]:
    records: list[Record] = []
    while limit is None or len(records) < limit:
        wanted = _PAGE if limit is None else min(_PAGE, limit - len(records))
        page = await repository.records(limit=wanted, before=records[-1].updated_at if records else None)
        records += page
        if len(page) < wanted:
            break
    return records


async def _warning(repository: Repository, record: Record) -> str | None:
    """Return what a user of the record should know about its content."""
    from filestore.transfer.repeated_names import find_repeated_names, repeated_names_warning  # heavy

    try:
        warning = repeated_names_warning(await find_repeated_names(repository, record))
    except (NotFound, InvalidContent, ChunksMissing):
        # The command shows the record, also of damaged content.
        return None
    return None if warning is None else f"{warning}; {HINTS['store-folder']}"


def _show_record(context: CommandContext, repository: Repository, record: Record, *, warning: str | None = None) -> None:
    context.show(
        {**record.as_json(), "repository": repository.location} | ({} if warning is None else {"warning": warning}),
        *table(
            id=record.id,
            digest=record.digest,
            path=for_display(record.path),
            name=for_display(record.name),
            size=exactly(record.size),
            kind=record.kind.value,
            namespace=record.namespace,
            created=minute(record.created_at),
            updated=minute(record.updated_at),
            repository=context.place(repository),
            **({} if warning is None else {"warning": for_display(warning)}),
        ),
    )


def record_line(record: Record) -> str:
    """Return a record as a line for a person."""
    kind = "  (directory)" if record.kind is Kind.DIRECTORY else ""
    return f"{record.id}  {in_units(record.size):>8}  {minute(record.updated_at)}  {for_display(record.name)}{kind}"


def _count(records: list[Record]) -> str:
    size = in_units(sum(record.size for record in records))
    return f"{len(records)} file{'' if len(records) == 1 else 's'}, {size}"
