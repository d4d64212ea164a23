"""Find the folder or the object store that a command works on, and open its store and its index."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from filestore.errors import NotARepository
from filestore_cli.context import CommandContext, Place
from filestore_cli.text import for_display

if TYPE_CHECKING:
    # Heavy: the commands import it when they run.
    from filestore.core.object_location import ObjectLocation
    from filestore.repository.index.protocol import Index
    from filestore.repository.stores.protocol import ChunkStore

T = TypeVar("T")


def maintained_place(context: CommandContext, command: str) -> Place:
    """Return the object store of the settings, or the folder that --root or the URL names.

    Raises ClickException for the URL of a server.
    """
    return context.objects(unless=("url", "root")) or _folder(context, command)


def refuse_objects(objects: ObjectLocation | None, command: str) -> None:
    """Raise ClickException if the repository is in an object store."""
    if objects is not None:
        raise click.ClickException(
            f"{command} works on folders so far, and not on {for_display(objects)}; docs/object-store.md says what to do"
        )


def _folder(context: CommandContext, command: str) -> Path:
    from filestore.backends import repository_folder  # heavy

    root = context.settings.root.absolute()
    has_root = click.get_current_context().params.get("root") is not None
    url = context.settings.url
    if url is None or has_root:
        return root
    folder = repository_folder(url)
    if folder is None:
        raise click.ClickException(
            f"{command} works on the folder of a repository, and {for_display(url)} is the URL of a server; "
            "run it on the machine of that server, with --root and the folder that it serves"
        )
    return folder.absolute()


@asynccontextmanager
async def opened_folder(
    context: CommandContext, folder: Place, *, read_only: bool = False, accepts_index: bool = False
) -> AsyncIterator[tuple[ChunkStore, Index]]:
    """Give the store and the index of the repository in `folder` for a block. `open_backend` describes the options."""
    from filestore.backends import open_backend  # heavy

    try:
        store, index = await open_backend(folder, read_only=read_only, accepts_index=accepts_index)
    except NotARepository as error:
        raise context.advised(error) from None
    try:
        yield store, index
    finally:
        await index.close()
        await store.close()


async def removed_from_index(context: CommandContext, folder: Place, remove: Callable[[Index], Awaitable[T]]) -> T:
    """Return what `remove` returns, as `with_index` does. On a full disk, it is called again with the space of the reserve.

    It removes something, or revokes it.
    """
    from filestore.repository.full_disk import with_reserve  # heavy

    async with opened_folder(context, folder) as (store, index):
        return await with_reserve(store, lambda: remove(index))


async def create_folder(folder: Place) -> bool:
    """Make a folder or an object store a repository. Return False if it was one already."""
    from filestore.backends import create_repository  # heavy

    return await create_repository(folder)


async def with_index(
    context: CommandContext, folder: Place, use: Callable[[Index], Awaitable[T]], *, read_only: bool = False
) -> T:
    """Return what `use` returns for the index of the repository in `folder`. The repository is closed afterwards."""
    async with opened_folder(context, folder, read_only=read_only) as (_, index):
        return await use(index)
