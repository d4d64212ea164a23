"""Push what the cache of Hugging Face's programs has: links are followed, and the name and the tags are those of the Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filestore.core.commits import MAIN
from filestore.errors import FilestoreError, LabelExists
from filestore_cli.text import for_display

if TYPE_CHECKING:
    # Heavy: the commands import these when they run.
    from filestore.repository.protocol import Repository
    from filestore.transfer.push import PushPlan, PushResult
    from filestore.transfer.sources.hub_cache import HubSnapshot
    from filestore.transfer.sources.walk import Symlinks

Note = Callable[[str], None]


async def push_path(
    repository: Repository,
    path: Path,
    *,
    note: Note,
    name: str | None,
    message: str,
    branch: str,
    symlinks: Symlinks,
    include: Sequence[str],
    exclude: Sequence[str],
    **others: Any,
) -> PushResult:
    """Push as `filestore.push` does. A snapshot of the Hub gets its name, unless `name` is given, and tags for its revision.

    `note` prints what the user should know about that. Raises what `filestore.push` raises.
    """
    from filestore.transfer.push import push  # heavy

    found = await _find(path, symlinks, include, exclude, note)
    if found is not None:
        if name is None:
            name = found.name
            note(
                f"{for_display(path)} is in the cache of Hugging Face: it is stored as {for_display(name)} (--name changes that)."
            )
        path, symlinks = found.path, _follow()
        message = message or f"Revision {found.revision} of {found.name}."
    pushed = await push(
        repository,
        path,
        name=name,
        message=message,
        branch=branch,
        symlinks=symlinks,
        include=include,
        exclude=exclude,
        **others,
    )
    if found is not None:
        await _set_tags(repository, pushed, found, branch, note)
    return pushed


async def plan_path(
    repository: Repository,
    path: Path,
    *,
    note: Note,
    symlinks: Symlinks,
    include: Sequence[str],
    exclude: Sequence[str],
    **others: Any,
) -> PushPlan:
    """Plan as `filestore.plan_push` does, also for a snapshot of the Hub. Raises what that raises."""
    from filestore.transfer.push import plan_push  # heavy

    found = await _find(path, symlinks, include, exclude, note)
    if found is not None:
        path, symlinks = found.path, _follow()
    return await plan_push(repository, path, symlinks=symlinks, include=include, exclude=exclude, **others)


async def _find(path: Path, symlinks: Symlinks, include: Sequence[str], exclude: Sequence[str], note: Note) -> HubSnapshot | None:
    """Return the checked snapshot at a path. Return None for anything else, and if the user has chosen what becomes of links."""
    from filestore.system.threads import in_disk_thread  # heavy
    from filestore.transfer.sources.hub_cache import find_snapshot  # heavy
    from filestore.transfer.sources.walk import Symlinks  # heavy

    if symlinks not in {Symlinks.INSIDE, Symlinks.FOLLOW}:
        return None
    found = await in_disk_thread(find_snapshot, path)
    if found is not None:
        await in_disk_thread(found.check, include, exclude)
        if found.has_unfinished:
            note(
                f"A download into {for_display(found.home)} was interrupted, so files may be missing; `hf download` completes it."
            )
    return found


def _follow() -> Symlinks:
    from filestore.transfer.sources.walk import Symlinks  # heavy

    return Symlinks.FOLLOW


async def _set_tags(repository: Repository, pushed: PushResult, found: HubSnapshot, branch: str, note: Note) -> None:
    """Set the tags of a snapshot. What fails is a note: the snapshot is stored."""
    name = pushed.record.full_name
    for tag in found.tags:
        try:
            commit = await repository.find_commit(name, None if branch == MAIN else f"refs/heads/{branch}")
            if commit.file_id == pushed.record.id:
                await repository.set_label(name, tag, revision=commit.id)
        except LabelExists as error:
            with suppress(FilestoreError):
                if (await repository.find_commit(name, error.commit_id)).digest == pushed.record.digest:
                    continue
            note(f"The tag {for_display(tag)} stays at another version; `filestore tag --force` moves it.")
        except FilestoreError as error:
            note(f"The tag {for_display(tag)} was not set: {for_display(str(error))}")
