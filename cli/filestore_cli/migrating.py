"""The command migrate."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from filestore_cli.backup import damaged_as_json, damaged_lines, rate_option, telling
from filestore_cli.context import CommandContext, takes
from filestore_cli.findings import number_of
from filestore_cli.folders import opened_folder
from filestore_cli.progress import LINE_SECONDS
from filestore_cli.start import run_to_end
from filestore_cli.text import exactly, for_display, in_units, table
from filestore_cli.token_files import warn_of_password

if TYPE_CHECKING:
    # Heavy: the command imports it when it runs.
    from filestore.core.object_location import ObjectLocation
    from filestore.repository.maintenance.migrate import MigrationCounts


@click.command(short_help="Move a local repository to an object store.")
@click.option("--from", "source", required=True, metavar="URL", help="The folder of the repository: file:///PATH, or a path.")
@click.option("--to", "target", required=True, metavar="URL", help="The object store: s3://BUCKET/PREFIX?endpoint=URL.")
@click.option(
    "--to-index",
    "index",
    envvar="FILESTORE_INDEX",
    metavar="URL",
    help="The database: postgresql://USER@HOST/DATABASE.  [default: FILESTORE_INDEX]",
)
@rate_option
@click.option("--dry-run", is_flag=True, help="Only say what would be copied.")
@takes()
def migrate(context: CommandContext, source: str, target: str, *, index: str | None, rate: int | None, dry_run: bool) -> None:
    """Move a repository from a folder to an object store and PostgreSQL, while servers serve the folder.

    It may be interrupted and run again: what was copied is not copied again. At the end, nothing more is written to the
    folder, and servers are to be started with --store and --index.
    """
    folder, location = _places(source, target, index)

    async def run() -> None:
        from filestore.repository.index.sqlite import SqliteIndex  # heavy
        from filestore.repository.maintenance import migrate as migration  # heavy
        from filestore.repository.object_repository import open_target  # heavy

        counts = migration.MigrationCounts()
        async with AsyncExitStack() as stack:
            store, rows = await stack.enter_async_context(opened_folder(context, folder))
            assert isinstance(rows, SqliteIndex)  # noqa: S101  # it is a folder
            new_store, new_rows = await open_target(location)
            stack.push_async_callback(new_rows.close)
            stack.push_async_callback(new_store.close)
            await stack.enter_async_context(_told(context, counts))
            await migration.migrate(
                migration.MigrationSource(store=store, index=rows, location=str(folder)),
                migration.MigrationTarget(store=new_store, index=new_rows, location=str(location)),
                rate=rate,
                dry_run=dry_run,
                counts=counts,
            )
        _show(context, folder, location, counts, dry_run=dry_run)

    run_to_end(run())


def _places(source: str, target: str, index: str | None) -> tuple[Path, ObjectLocation]:
    """Return the folder, and the object store with its index. Raises ClickException, InvalidUrl, InvalidSetting."""
    from filestore.backends import object_location, repository_folder  # heavy
    from filestore.core.object_location import has_password, is_object_store

    if is_object_store(source):
        raise click.UsageError("--from names a folder; a repository does not move from an object store to a folder so far")
    folder = repository_folder(source)
    if folder is None:
        raise click.UsageError("--from names a server; run the command on its machine, with the folder that it serves")
    given = click.get_current_context().get_parameter_source("index")
    if index is not None and given is click.core.ParameterSource.COMMANDLINE and has_password(index):
        warn_of_password()
    location = object_location(target, index) if is_object_store(target) else None
    if location is None:
        raise click.UsageError("--to names no object store; it looks like s3://BUCKET/PREFIX?endpoint=URL")
    return folder.absolute(), location


def _show(context: CommandContext, folder: Path, location: ObjectLocation, counts: MigrationCounts, *, dry_run: bool) -> None:
    from filestore.repository.folder import RUNTIME_DATABASES  # heavy

    context.show(
        {
            "from": str(folder),
            "to": str(location),
            "repository_id": counts.repository_id,
            "dry_run": dry_run,
            "records": counts.record_count,
            "chunks": counts.chunk_count,
            "stored_size": counts.stored_size,
            "bytes_copied": counts.copied_size,
            "passes": counts.pass_number,
            "lost": counts.lost_count,
            "damaged": damaged_as_json(counts.damaged),
        },
        *table(
            **{"from": for_display(folder)},
            to=for_display(location),
            records=counts.record_count,
            content=f"{counts.chunk_count} chunks, {in_units(counts.stored_size)}",
            **{"would_copy" if dry_run else "copied": exactly(counts.copied_size)},
        ),
        *damaged_lines(counts.damaged),
    )
    if counts.lost_count:
        lost = number_of(counts.lost_count, "frame or manifest", "frames and manifests")
        otherwise = (
            "`filestore check` says in which files" if dry_run else "all else was copied: push the files that are not whole again"
        )
        raise click.ClickException(f"{lost} in {for_display(folder)} cannot be read; {otherwise}")
    if not dry_run:
        if any(folder.glob(RUNTIME_DATABASES)):
            context.note("The pipelines of runtimes stay in the folder: no runtime works on an object store yet.")
        context.note("Nothing more is written to the folder. Serve the repository with --store and --index.")


def _told(context: CommandContext, counts: MigrationCounts) -> AbstractAsyncContextManager[None]:
    before = counts.copied_size

    def line() -> str:
        nonlocal before
        rate = (counts.copied_size - before) / LINE_SECONDS
        before = counts.copied_size
        which = "last pass" if counts.is_last else f"pass {counts.pass_number}"
        seen = f"{counts.record_count} files, {counts.chunk_count} chunks, {in_units(counts.stored_size)} seen"
        return f"migrate: {which}: {seen}; {in_units(counts.copied_size)} copied, {in_units(round(rate))}/s"

    return telling(context, line)
