"""Make the folders above the target of a fetch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from filestore.errors import FilestoreError, TargetError
from filestore.system.files import storage_errors, sync_path, target_error
from filestore.system.threads import in_disk_thread


@asynccontextmanager
async def with_parents(target: Path) -> AsyncIterator[None]:
    """Make the missing folders above `target`. Where the block fails, those that are still empty are removed again.

    Raises TargetError.
    """
    made = await in_disk_thread(_make, target)
    try:
        yield
    except FilestoreError:
        await in_disk_thread(_remove_empty, made)
        raise


def _make(target: Path) -> list[Path]:
    """Make the missing folders above `target`, with durable names. Return those that were made, the innermost first."""
    made: list[Path] = []
    with storage_errors(target, translate=target_error):
        for folder in reversed(target.parents):
            try:
                folder.mkdir()
            except FileExistsError:
                if not folder.is_dir():
                    raise TargetError(str(target), f"{folder} is there and is not a folder; give another target") from None
            except OSError:
                # Some file systems say so of a folder that exists: one that is read-only, or that is not ours.
                if not folder.is_dir():
                    raise
            else:
                made.insert(0, folder)
                sync_path(folder.parent)
    return made


def _remove_empty(folders: Iterable[Path]) -> None:
    with suppress(OSError):  # another process uses it, or what has arrived is kept in it
        for folder in folders:
            folder.rmdir()
