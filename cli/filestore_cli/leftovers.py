"""The command leftovers. It lists what interrupted fetches left next to their targets, and removes it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from filestore.core.timestamps import format_seconds
from filestore.errors import StorageError
from filestore_cli.context import CommandContext, takes
from filestore_cli.parameters import NonemptyPath
from filestore_cli.text import age, for_display, in_units

if TYPE_CHECKING:
    # Heavy: the command imports it when it runs.
    from filestore.transfer.leftovers import Leftover


@click.command(short_help="List what interrupted fetches left.")
@click.argument("folder", default=".", type=NonemptyPath())
@click.option("--remove", "removes", is_flag=True, help="Remove them; files of a running fetch stay.")
@takes()
def leftovers(context: CommandContext, folder: Path, *, removes: bool) -> None:
    """List the hidden files and folders that interrupted fetches left in FOLDER. The same fetch continues from them."""
    from filestore.transfer.leftovers import leftovers as leftovers_of  # heavy
    from filestore.transfer.leftovers import remove_leftover

    found = leftovers_of(folder)
    gone: set[Path] = set()
    failure: StorageError | None = None
    for each in found if removes else ():
        try:
            if remove_leftover(each):
                gone.add(each.path)
        except StorageError as error:
            failure = error
    size = sum(each.stored_size for each in found)
    removed_size = sum(each.stored_size for each in found if each.path in gone)
    summary = f"{_count(len(found))}, {in_units(size)} in {for_display(folder)}"
    if removes:
        summary = f"removed {_count(len(gone))}, {in_units(removed_size)} in {for_display(folder)}"
    context.show(
        {
            "folder": str(folder),
            "leftovers": [_as_json(each, is_removed=each.path in gone) for each in found],
            "stored_size": size,
            "removed_size": removed_size,
        },
        *(_line(each, is_removed=each.path in gone) for each in found),
        summary,
    )
    if failure is not None:
        raise failure
    if not removes and any(not each.is_in_use and not each.is_needed for each in found):
        context.note("`filestore leftovers --remove` removes them; the same fetch continues from them.")


def _as_json(leftover: Leftover, *, is_removed: bool) -> dict[str, object]:
    return {
        "path": str(leftover.path),
        "stored_size": leftover.stored_size,
        "written_at": format_seconds(leftover.written_at),
        "in_use": leftover.is_in_use,
        "needed": leftover.is_needed,
        "removed": is_removed,
    }


def _line(leftover: Leftover, *, is_removed: bool) -> str:
    verb = "removed " if is_removed else ""
    remark = "  (in use)" if leftover.is_in_use else ""
    if leftover.is_needed:
        remark = "  (a replacement was interrupted: fetch to that target again to repair it)"
    written = age(time.time() - leftover.written_at)
    return f"{verb}{in_units(leftover.stored_size):>8}  {written:>7}  {for_display(leftover.path)}{remark}"


def _count(count: int) -> str:
    return "1 leftover" if count == 1 else f"{count} leftovers"
