"""push, fetch, hash, and create file."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from filestore.errors import TargetError
from filestore.objects import Reference
from filestore_cli.progress import FETCH, HASH, PUSH, shown
from filestore_cli.session import Session, takes
from filestore_cli.text import duration, exactly, in_units, printable, table

if TYPE_CHECKING:
    # Heavy: the commands import these when they run.
    from filestore.codec import Codec
    from filestore.fetch import Fetched
    from filestore.manifest import Manifest
    from filestore.objects import Record
    from filestore.push import Pushed

_PATH = click.Path(path_type=Path)
_CONNECTION = ("url", "token", "connections", "stall_seconds")


@click.command()
@click.argument("path", type=_PATH)
@click.option("--name", help="The name to keep it under.  [default: its own]")
@click.option("--rehash", is_flag=True, help="Read it even if it is in the same state as at its last push.")
@takes(*_CONNECTION, "codec", "journal")
def push(session: Session, path: Path, name: str | None, *, rehash: bool) -> None:
    """Store the file at PATH, sending only what the repository does not have."""
    pushed, place, location = asyncio.run(_push(session, path, name=name, rehash=rehash))
    session.show(
        _pushed_result(pushed, location),
        *table(
            id=pushed.record.id,
            digest=pushed.record.digest,
            path=printable(pushed.record.path),
            name=printable(pushed.record.name),
            size=exactly(pushed.record.size),
            sent=exactly(pushed.bytes_sent),
            shared=exactly(pushed.bytes_shared),
            time=_time(pushed.seconds, pushed.record.size),
            repository=place,
        ),
    )


@click.command("file")
@click.argument("path", type=_PATH)
@click.option("--name", "-n", help="The name to keep it under.  [default: its own]")
@takes(*_CONNECTION, "codec", "journal")
def create_file(session: Session, path: Path, name: str | None) -> None:
    """Store the file at PATH and print its id in a pipeline's words."""
    pushed, place, location = asyncio.run(_push(session, path, name=name, rehash=False))
    session.show(_pushed_result(pushed, location), f"Pipeline File created with ID= {pushed.record.id}")
    # Standard output is exactly that line, for the scripts that read it.
    if session.settings.url is None:
        session.note(f"It is kept in {place}.")


@click.command()
@click.argument("reference", metavar="ID|DIGEST|PATH|NAME")
@click.option("-o", "--output", metavar="TARGET", help="A folder, or the path of the new file.  [default: the current folder]")
@takes(*_CONNECTION)
def fetch(session: Session, reference: str, output: str | None) -> None:
    """Write a stored file to TARGET, every byte verified.

    TARGET is understood as by cp: into an existing folder under the file's own name, else to that very path. What is
    there already, of an earlier version or of a fetch that was cut, is not transferred again.
    """
    record, fetched, place, location = asyncio.run(_fetch(session, Reference.parse(reference), output))
    session.show(
        {
            "id": record.id,
            "digest": str(record.digest),
            "name": record.name,
            "path": str(fetched.path),
            "size": fetched.size,
            "bytes_received": fetched.bytes_received,
            "bytes_reused": fetched.bytes_reused,
            "seconds": fetched.seconds,
            "repository": location,
        },
        *table(
            path=printable(fetched.path),
            digest=record.digest,
            size=exactly(fetched.size),
            received=exactly(fetched.bytes_received),
            reused=exactly(fetched.bytes_reused),
            time=_time(fetched.seconds, fetched.size),
            repository=place,
        ),
    )


@click.command("hash")
@click.argument("path", metavar="FILE", type=_PATH)
@takes()
def hash_file(session: Session, path: Path) -> None:
    """Print the digest that a push of FILE would give; asks no repository."""
    started = time.monotonic()
    manifest = asyncio.run(_hash(session, path))
    session.show(
        {
            "digest": str(manifest.digest),
            "file": str(path),
            "size": manifest.size,
            "chunks": len(manifest.chunks),
            "cutting": manifest.cutting,
            "seconds": time.monotonic() - started,
        },
        f"{manifest.digest}  {printable(path)}",
    )


def target_path(output: str | None, name: str) -> Path:
    """Where a fetch of the file `name` writes, given what the user said, as cp would have it. Raises TargetError."""
    path = Path(name if output is None else output)
    if output is not None and (path.is_dir() or output.endswith(os.sep)):
        if not path.is_dir():
            raise TargetError(output, "there is no such folder; make it first")
        path /= name
    if path.is_symlink():
        # A link goes on pointing at the file that it names.
        path = path.resolve()
    if path.is_dir():
        raise TargetError(str(path), "a folder stands there; give another target with -o")
    if not path.parent.is_dir():
        raise TargetError(str(path), f"there is no folder {path.parent}; make it first")
    return path


async def _push(session: Session, path: Path, *, name: str | None, rehash: bool) -> tuple[Pushed, str, str]:
    from filestore.heap import keep_heap  # heavy
    from filestore.journal import Journal  # heavy
    from filestore.push import push as push_file  # heavy

    keep_heap()
    settings = session.settings
    with Journal(settings.journal) as journal:
        async with session.repository() as repository, shown(PUSH, path.name, enabled=session.shows_progress) as report:
            pushed = await push_file(
                repository, path, name=name, journal=journal, rehash=rehash, codec=_codec(settings.codec), report=report
            )
    return pushed, session.place(repository), repository.location


async def _fetch(session: Session, reference: Reference, output: str | None) -> tuple[Record, Fetched, str, str]:
    from filestore.fetch import fetch as fetch_file  # heavy
    from filestore.heap import keep_heap  # heavy

    keep_heap()
    async with session.repository() as repository:
        record = await repository.record(reference)
        target = target_path(output, record.name)
        async with shown(FETCH, record.name, enabled=session.shows_progress) as report:
            fetched = await fetch_file(repository, record, target, report=report)
    return record, fetched, session.place(repository), repository.location


async def _hash(session: Session, path: Path) -> Manifest:
    from filestore.push import manifest_of  # heavy

    async with shown(HASH, path.name, enabled=session.shows_progress) as report:
        return await manifest_of(path, report=report)


def _codec(choice: str) -> Codec | None:
    from filestore.codec import Codec  # heavy

    return None if choice == "auto" else Codec[choice.upper().replace("+", "_")]


def _pushed_result(pushed: Pushed, location: str) -> dict[str, object]:
    return {
        **pushed.record.as_json(),
        "bytes_read": pushed.bytes_read,
        "bytes_sent": pushed.bytes_sent,
        "bytes_shared": pushed.bytes_shared,
        "seconds": pushed.seconds,
        "repository": location,
    }


def _time(seconds: float, size: int) -> str:
    rate = f" ({in_units(size / seconds)}/s)" if seconds > 0 else ""
    return duration(seconds) + rate
