"""The command sync: make a stored directory like a folder, or a folder like a stored directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from filestore.core.commits import printable
from filestore.core.references import Reference
from filestore.errors import SourceRefused
from filestore.repository.protocol import whole_reference_of
from filestore_cli.auditing import user_name
from filestore_cli.context import CommandContext, takes
from filestore_cli.lookup import record_of
from filestore_cli.progress import SYNC, show_progress
from filestore_cli.start import run_to_end
from filestore_cli.text import duration, exactly, for_display, in_units, table

if TYPE_CHECKING:
    # Heavy: the command imports it when it runs.
    from filestore.transfer.sync import SyncResult

_MARKS = ("/", "./", "../", "~/")
_SHOWN = 50
"""The changes that are shown to a person. --json has all."""


class Direction(NamedTuple):
    """What a sync reads, and what it changes."""

    folder: Path
    name: str
    is_to_folder: bool


class Synced(NamedTuple):
    """The result of a sync, and words for the repository."""

    result: SyncResult
    place: str
    location: str


@click.command(short_help="Make a stored directory like a folder, or back.")
@click.argument("source")
@click.argument("target")
@click.option("--delete", is_flag=True, help="Remove what the target has and the source has not. Without it, that stays.")
@click.option("--plan", is_flag=True, help="Change nothing; show what would be added, changed and removed.")
@click.option("--message", default="", metavar="TEXT", help="What `filestore log` says about the new version of a name.")
@takes("url", "token", "connections", "stall_seconds", "retry_seconds", "limit_rate", "push_cache", "presigned_reads")
def sync(context: CommandContext, source: str, target: str, *, delete: bool, plan: bool, message: str) -> None:
    """Make TARGET like SOURCE. One of them is a folder, and the other one is the name of a stored directory.

    A text that begins with /, ./, ../ or ~/, or ends with /, is a folder. Otherwise, what is a folder of that name is one.

    To a name, the changes are one new version of it. In a folder, each file that differs is replaced in one step.
    """
    direction = _direction(source, target)
    if message and direction.is_to_folder:
        raise click.UsageError("--message is about a new version of a name; leave it out")
    try:
        done = run_to_end(_sync(context, direction, delete=delete, plan=plan, message=message))
    except SourceRefused as error:
        # Its usual advice names options of a push.
        said = f"{error}; `filestore push` has --symlinks and --exclude for that, and `filestore sync` takes all files"
        raise click.ClickException(for_display(said)) from error
    context.show(_result(done), *_lines(done, is_plan=plan))


def _direction(source: str, target: str) -> Direction:
    """Return which of the two texts is the folder. Raises click.UsageError if that is not clear."""
    marked = [_is_marked(text) for text in (source, target)]
    if marked[0] == marked[1]:
        if marked[0]:
            raise click.UsageError("SOURCE and TARGET are both folders; one of them must be the name of a stored directory")
        marked = [Path(text).is_dir() for text in (source, target)]
        if marked[0] == marked[1]:
            how = "both could be folders" if marked[0] else "neither is a folder that exists"
            shown = f"./{for_display(source)} or ./{for_display(target)}"
            raise click.UsageError(f"of SOURCE and TARGET, {how}; begin the folder with ./, as in {shown}")
    folder, name = (source, target) if marked[0] else (target, source)
    return Direction(Path(folder).expanduser(), name, is_to_folder=marked[1])


def _is_marked(text: str) -> bool:
    if text.startswith(("/pipeline_files/", "/run_files/")):
        return False  # a stored path
    return text.startswith(_MARKS) or text.endswith("/") or text in {".", "..", "~"}


async def _sync(context: CommandContext, direction: Direction, *, delete: bool, plan: bool, message: str) -> Synced:
    from filestore.system.own_process import tune_process  # heavy

    tune_process()
    from filestore.transfer.sources.push_cache import PushCache  # heavy
    from filestore.transfer.sync import sync_to_folder, sync_to_name  # heavy

    limits = context.settings.zip_limits
    async with (
        context.repository(read_only=plan or direction.is_to_folder) as repository,
        show_progress(SYNC, direction.name, enabled=context.shows_progress, repository=repository) as report,
    ):
        if direction.is_to_folder:
            wanted = whole_reference_of(Reference.parse(direction.name))
            record = await record_of(repository, wanted)
            result = await sync_to_folder(
                repository, record, target=direction.folder, delete=delete, plan=plan, limits=limits, report=report
            )
        else:
            with PushCache(context.settings.push_cache) as push_cache:
                result = await sync_to_name(
                    repository,
                    direction.folder,
                    name=direction.name,
                    delete=delete,
                    plan=plan,
                    message=message,
                    author=printable(user_name()),
                    push_cache=push_cache,
                    limits=limits,
                    report=report,
                )
        return Synced(result, context.place(repository), repository.location)


def _result(done: Synced) -> dict[str, object]:
    result = done.result
    return {
        "id": None if result.record is None else result.record.id,
        "digest": None if result.record is None else str(result.record.digest),
        "changes": [{"path": change.path, "action": change.action.value, "size": change.size} for change in result.changes],
        "bytes_sent": result.bytes_sent,
        "bytes_received": result.bytes_received,
        "seconds": result.seconds,
        "repository": done.location,
    }


def _lines(done: Synced, *, is_plan: bool) -> list[str]:
    from filestore.transfer.sync import SyncAction  # heavy

    result = done.result
    lines = [
        f"{change.action.value:<6}  {in_units(change.size):>8}  {for_display(change.path)}" for change in result.changes[:_SHOWN]
    ]
    if len(result.changes) > _SHOWN:
        lines.append(f"... and {len(result.changes) - _SHOWN:,} more; --json lists all")
    totals = {}
    for word, action in (("added", SyncAction.ADD), ("changed", SyncAction.CHANGE), ("removed", SyncAction.REMOVE)):
        sizes = [change.size for change in result.changes if change.action is action]
        totals[word] = f"{len(sizes):,} file{'' if len(sizes) == 1 else 's'}, {exactly(sum(sizes))}"
    moved = {word: exactly(size) for word, size in (("sent", result.bytes_sent), ("received", result.bytes_received)) if size}
    digest = {} if result.record is None or is_plan else {"digest": result.record.digest}
    lines += [*([""] if lines else []), *table(**digest, **totals, **moved, time=duration(result.seconds), repository=done.place)]
    return [*lines, "Nothing was changed."] if is_plan else lines
