"""The commands backup and restore."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from filestore.errors import NotARepository
from filestore_cli.context import CommandContext, Place, takes
from filestore_cli.findings import hold_lines, number_of
from filestore_cli.folders import maintained_place, opened_folder
from filestore_cli.parameters import NonemptyPath, Rate
from filestore_cli.progress import LINE_SECONDS
from filestore_cli.start import run_to_end, say
from filestore_cli.text import exactly, for_display, in_units, table

if TYPE_CHECKING:
    # Heavy: the commands import it when they run.
    from filestore.core.object_location import ObjectLocation
    from filestore.repository.maintenance.backup import Backup
    from filestore.repository.maintenance.content import ContentCounts, DamagedFile
    from filestore.repository.maintenance.migrate import MigrationCounts

_SHOWN_FILES = 20


rate_option = click.option("--rate", type=Rate(), metavar="SIZE", help="The most bytes to copy per second.  [default: no limit]")


@click.command(short_help="Back up a repository.")
@click.argument("target", type=NonemptyPath())
@click.option("--full", is_flag=True, help="Copy content too, as far as TARGET lacks it.")
@click.option(
    "--keep", "kept", type=click.IntRange(min=1), default=7, show_default=True, metavar="COUNT", help="How many backups stay."
)
@rate_option
@takes("url", "root")
def backup(context: CommandContext, target: Path, *, full: bool, kept: int, rate: int | None) -> None:
    """Back up names, records, tokens and pipelines to the folder TARGET, while servers run.

    The repository is in a folder, or in an object store with its index.

    With --full, TARGET also gets the content, and everything can be restored from it.
    """
    place = maintained_place(context, "backup")

    async def run() -> None:
        from filestore.repository.maintenance.content import ContentCounts  # heavy

        counts = ContentCounts()
        async with _told(context, "backup", counts):
            made = await _back_up(context, place, target, full=full, kept=kept, rate=rate, counts=counts)
        content = f"{counts.chunk_count} chunks, {in_units(counts.stored_size)}" if full else "not copied; --full does that"
        context.show(
            {
                "backup": str(made.path),
                "root": str(place),
                "has_content": full,
                "records": counts.record_count,
                "chunks": counts.chunk_count,
                "stored_size": counts.stored_size,
                "bytes_copied": counts.copied_size,
                "damaged": damaged_as_json(made.damaged),
                "removed": list(made.removed),
            },
            *table(
                backup=for_display(made.path),
                **{"folder" if isinstance(place, Path) else "repository": for_display(place)},
                records=counts.record_count,
                content=content,
                **({"copied": exactly(counts.copied_size)} if full else {}),
                **({"removed": f"{len(made.removed)} older backups"} if made.removed else {}),
            ),
            *damaged_lines(made.damaged),
        )
        if made.damaged:
            raise click.ClickException(
                f"the backup was made, but {_how_many(counts)} in it not whole, because the repository has lost some of their"
                " content; earlier backups may have it"
            )

    run_to_end(run())


async def _back_up(
    context: CommandContext, place: Place, target: Path, *, full: bool, kept: int, rate: int | None, counts: ContentCounts
) -> Backup:
    from filestore.repository.maintenance.backup import back_up, back_up_objects  # heavy

    if isinstance(place, Path):
        try:
            return await back_up(place, target, full=full, kept=kept, rate=rate, counts=counts)
        except NotARepository as error:
            raise context.advised(error) from None
    from filestore.repository.index.postgres.index import PostgresIndex  # heavy

    async with opened_folder(context, place, read_only=True) as (store, index):
        assert isinstance(index, PostgresIndex)  # noqa: S101  # it is that of an object store
        return await back_up_objects(store, index, target, location=str(place), full=full, kept=kept, rate=rate, counts=counts)


@click.command(short_help="Restore a repository from backup.")
@click.argument("source", type=NonemptyPath())
@rate_option
@takes("root")
def restore(context: CommandContext, source: Path, *, rate: int | None) -> None:
    """Restore the newest backup in SOURCE, into a new folder or over a repository that has lost its index.

    No server and no command may have the folder open. Content that is there stays; the old index is renamed.

    With --store and --index, it is restored to an object store and a database that have nothing yet.
    """
    objects = context.objects(unless=("root",))
    if objects is not None:
        run_to_end(_restore_objects(context, source, objects, rate))
        return
    root = context.settings.root.absolute()

    async def run() -> None:
        from filestore.repository.maintenance.content import ContentCounts  # heavy
        from filestore.repository.maintenance.restore import restore as restore_from  # heavy

        counts = ContentCounts()
        async with _told(context, "restore", counts):
            restored = await restore_from(source, root, rate=rate, counts=counts)
        whole = counts.record_count - len(restored.damaged)
        context.show(
            {
                "root": str(root),
                "backup": str(restored.backup),
                "has_content": restored.has_content,
                "records": counts.record_count,
                "chunks": counts.chunk_count,
                "stored_size": counts.stored_size,
                "bytes_copied": counts.copied_size,
                "damaged": damaged_as_json(restored.damaged),
                "set_aside": [str(path) for path in restored.set_aside],
                "held": [hold.as_json() for hold in restored.holds],
            },
            *table(
                folder=for_display(root),
                backup=for_display(restored.backup),
                records=f"{counts.record_count}, {whole} of them whole",
                content=f"{counts.chunk_count} chunks, {in_units(counts.stored_size)}",
                copied=exactly(counts.copied_size),
                **({"set_aside": ", ".join(path.name for path in restored.set_aside)} if restored.set_aside else {}),
            ),
            *damaged_lines(restored.damaged),
            *hold_lines(restored.holds),
        )
        if restored.damaged:
            why = "" if restored.has_content else ", and the backup was made without --full"
            raise click.ClickException(
                f"the repository was restored, but {_how_many(counts)} not whole, because some of their content is not in"
                f" {for_display(root)}{why}; push these files again, or copy the folders chunks and manifests there and"
                " restore again"
            )

    run_to_end(run())


async def _restore_objects(context: CommandContext, source: Path, place: ObjectLocation, rate: int | None) -> None:
    from filestore.repository.folder import RUNTIME_DATABASES  # heavy
    from filestore.repository.maintenance.migrate import MigrationCounts, MigrationTarget  # heavy
    from filestore.repository.maintenance.restore_objects import restore_objects  # heavy
    from filestore.repository.object_repository import open_target  # heavy

    counts = MigrationCounts()
    async with AsyncExitStack() as stack:
        store, index = await open_target(place)
        stack.push_async_callback(store.close)
        stack.push_async_callback(index.close)
        await stack.enter_async_context(_told(context, "restore", counts))
        target = MigrationTarget(store=store, index=index, location=str(place))
        restored = await restore_objects(source, target, rate=rate, counts=counts)
    context.show(
        {
            "root": str(place),
            "backup": str(restored.backup),
            "has_content": restored.has_content,
            "records": counts.record_count,
            "chunks": restored.chunk_count,
            "stored_size": restored.stored_size,
            "bytes_copied": counts.copied_size,
            "damaged": damaged_as_json(counts.damaged),
            "set_aside": [],
            "held": [],
        },
        *table(
            repository=for_display(place),
            backup=for_display(restored.backup),
            records=f"{counts.record_count}, {counts.record_count - len(counts.damaged)} of them whole",
            content=f"{restored.chunk_count} chunks, {in_units(restored.stored_size)}",
            copied=exactly(counts.copied_size),
        ),
        *damaged_lines(counts.damaged),
    )
    if any(restored.backup.glob(RUNTIME_DATABASES)):
        context.note("The pipelines of runtimes stay in the backup: no runtime works on an object store yet.")
    if counts.damaged:
        why = "" if restored.has_content else ", which was made without --full"
        raise click.ClickException(
            f"the repository was restored, but {_how_many(counts)} not whole, because some of their content is not in the"
            f" backup{why}; push these files again"
        )


@asynccontextmanager
async def telling(context: CommandContext, line: Callable[[], str]) -> AsyncIterator[None]:
    """Print what `line` returns every few seconds during the block."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(LINE_SECONDS)
            say(line())

    task = asyncio.create_task(tell()) if context.shows_progress else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def _told(context: CommandContext, verb: str, counts: ContentCounts | MigrationCounts) -> AbstractAsyncContextManager[None]:
    return telling(context, lambda: f"{verb}: {counts.chunk_count} chunks, {in_units(counts.copied_size)} copied")


def _how_many(counts: ContentCounts | MigrationCounts) -> str:
    count = len(counts.damaged)
    return f"{count} of {counts.record_count} {'file is' if count == 1 else 'files are'}"


def damaged_lines(damaged: list[DamagedFile]) -> list[str]:
    """Return a line for each of the first files that are not whole."""
    lines = [
        f"not whole  {each.record.id}  {for_display(each.record.full_name)}  ({_reason(each)})" for each in damaged[:_SHOWN_FILES]
    ]
    more = len(damaged) - _SHOWN_FILES
    return [*lines, *([f"and {more} more; --json lists them all"] if more > 0 else [])]


def _reason(damaged: DamagedFile) -> str:
    if not damaged.missing_count:
        return "its manifest is missing or damaged"
    return f"{number_of(damaged.missing_count, 'chunk is', 'chunks are')} missing"


def damaged_as_json(damaged: list[DamagedFile]) -> list[dict[str, object]]:
    """Return the files that are not whole, for --json."""
    return [{**each.record.as_json(), "missing_chunks": each.missing_count} for each in damaged]
