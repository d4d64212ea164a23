"""serve, and the tokens that a folder lets in."""

from __future__ import annotations

import ipaddress
import multiprocessing
import re
import secrets
import shlex
import socket
from collections.abc import Awaitable, Callable
from dataclasses import fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import click

from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE, checked_namespace
from filestore.core.timestamps import format_timestamp
from filestore.errors import NotARepository
from filestore.http.limits import ServerLimits
from filestore_cli.context import CommandContext, creates, takes
from filestore_cli.settings import Settings, parse_setting
from filestore_cli.start import run_to_end, say
from filestore_cli.text import for_display, minute, table

if TYPE_CHECKING:
    # Heavy: the commands import it when they run.
    from filestore.repository.index.protocol import Index, TokenRow

T = TypeVar("T")

TOKEN_BYTES = 32
SERVER_SETTINGS = ("spool_folder", *(limit.name for limit in fields(ServerLimits)))
"""Of every server that we start, beside where it listens."""
NOT_SERVED = "nothing is served, as standard output does not take what is said of it"

_BEGINNING = re.compile(r"[0-9a-f]{8,64}\Z")


@click.command(short_help="Serve a folder over HTTP.")
@creates
@takes("root", "host", "port", "workers", "token", *SERVER_SETTINGS)
def serve(context: CommandContext, *, create: bool) -> None:
    """Serve a folder over HTTP until stopped by Ctrl-C or SIGTERM; transfers under way may finish.

    The first start makes a token, and prints it. With --token, that token is let in for this run, and none is made. The
    local folder is made where it is absent; one that you name by --root is made a repository with --create only.
    """
    from filestore_cli.process import tune_process  # heavy

    tune_process()
    from filestore.backends import open_backend  # heavy
    from filestore.http.server import serve as serve_forever  # heavy

    settings = context.settings
    root = settings.root.absolute()
    created, made = False, None

    def prepare() -> None:
        nonlocal created, made
        created, made = open_served(context, root, create=create, with_token=settings.token is None)
        if not context.json:
            # Before anything can go wrong: a token that was just made is not kept, and never said again.
            words = table(folder=folder_words(root, created=created), token=_token_words(settings.token, made, root))
            context.show({}, *words, otherwise=NOT_SERVED)

    warn_if_open(settings.host)

    def announce(url: str) -> None:
        context.show(
            {"url": url, "root": str(root), "token": made, "repository_created": created},
            f"URL     {url}",
            "",
            "To push a file, type in another terminal:",
            f"  export FILESTORE_URL={reachable(url)}",
            f"  export FILESTORE_TOKEN={made or 'TOKEN'}",
            "  filestore push model.safetensors",
            "",
            f"listening on {url}",
            otherwise=NOT_SERVED,
        )

    serve_forever(
        lambda: open_backend(root),
        workers=settings.workers,
        tokens={} if settings.token is None else {token_digest(settings.token): DEFAULT_NAMESPACE},
        announce=announce,
        prepare=prepare,
        **server_arguments(settings, root),
    )


def open_served(context: CommandContext, root: Path, *, create: bool, with_token: bool = False) -> tuple[bool, str | None]:
    """See to it, in a child, that `root` is a repository: whether it was made one just now, and the token that was made.

    The local folder that nobody named is made one in any case. A token is made only `with_token`, where there is none yet.
    Raises FilestoreError.
    """
    may_create = create or context.has_default_root

    async def opened() -> tuple[bool, str | None]:
        created = await _create(root) if may_create else False
        return created, await _with_index(context, root, _first_token if with_token else _no_token)

    return in_child(lambda: run_to_end(opened()))


def folder_words(root: Path, *, created: bool) -> str:
    """What a server's start says of its folder."""
    return for_display(root) + (" (a new repository, made just now)" if created else "")


def server_arguments(settings: Settings, root: Path) -> dict[str, Any]:
    """What every server that we start has from the settings."""
    return {
        "host": settings.host,
        "port": settings.port,
        "limits": settings.server_limits,
        # By default on the disk that the file will be on: a temporary folder may be small, or in memory.
        "spool_folder": settings.spool_folder or root,
    }


def warn_if_open(host: str) -> None:
    """Say so where other machines can reach a server."""
    if not _is_loopback(host):
        say(
            f"Warning: {for_display(host)} can be reached from other machines, and traffic is not encrypted: "
            "whoever listens reads the token and the files."
        )


@click.group(short_help="Make, list and remove access tokens.")
def token() -> None:
    """Make, list and remove the tokens that a served folder lets in."""


@token.command("new", short_help="Make a token and print it.")
@click.option(
    "--namespace",
    default=DEFAULT_NAMESPACE,
    show_default=True,
    help="What the token may see: files and chunks are shared inside it only.",
)
@click.option("--label", default="", help="What the token is for, in your own words.")
@creates
@takes("root")
def new_token(context: CommandContext, namespace: str, label: str, *, create: bool) -> None:
    """Make a token and print it, this once."""
    checked_namespace(namespace)
    if not label.isprintable():
        raise click.BadParameter("a label is one line of printable text", param_hint="--label")
    root = context.settings.root.absolute()
    created = create and run_to_end(_create(root))
    made = run_to_end(_with_index(context, root, lambda index: _add_token(index, namespace=namespace, label=label)))
    context.show(
        {
            "token": made,
            "digest": str(token_digest(made)),
            "namespace": namespace,
            "label": label,
            "root": str(root),
            "repository_created": created,
        },
        made,
    )
    if created:
        context.note_created(root)
    context.note(
        f"It is let in to the namespace {namespace} of {for_display(root)}; only its digest is kept, so it is not shown again."
    )


@token.command("ls", short_help="List the tokens.")
@takes("root")
def list_tokens(context: CommandContext) -> None:
    """List the tokens that are let in, the oldest first, by the beginnings of their digests."""
    root = context.settings.root.absolute()
    rows = run_to_end(_with_index(context, root, lambda index: index.tokens(), read_only=True))
    context.show(
        {"tokens": [_row_result(row) for row in rows], "root": str(root)},
        *map(_row_line, rows),
        f"{len(rows)} token{'' if len(rows) == 1 else 's'} in {for_display(root)}",
    )


@token.command("rm", short_help="Remove a token.")
@click.argument("which", metavar="TOKEN|DIGEST")
@takes("root")
def remove_token(context: CommandContext, which: str) -> None:
    """Let a token in no more: the token itself, its digest, or the first 8 or more digits of that."""
    root = context.settings.root.absolute()
    row = run_to_end(_with_index(context, root, lambda index: _remove_token(index, which)))
    context.show({**_row_result(row), "root": str(root)}, f"{row.digest} is let in no more")


def in_child(function: Callable[[], T]) -> T:
    """What `function` gives, or raises, in a process of its own that ends with it.

    The server forks its workers: threads and open databases that this process had would be in them, half alive.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(function, sender))
    child.start()
    sender.close()
    try:
        succeeded, result = receiver.recv()
    except EOFError:
        raise click.ClickException("a process that was to open the folder died; see what the system's log says of it") from None
    finally:
        receiver.close()
        child.join()
    if not succeeded:
        raise result
    return result  # type: ignore[no-any-return]  # what came through the pipe is what `function` returned


def _answer(function: Callable[[], object], sender: Connection) -> None:
    try:
        answer: tuple[bool, object] = (True, function())
    except KeyboardInterrupt:
        return  # the parent was interrupted by the same key, and says so
    except Exception as error:  # noqa: BLE001  # raised again in the parent
        answer = (False, error)
    sender.send(answer)


async def _create(root: Path) -> bool:
    from filestore.backends import create_repository  # heavy

    return await create_repository(root)


async def _with_index(context: CommandContext, root: Path, use: Callable[[Index], Awaitable[T]], *, read_only: bool = False) -> T:
    from filestore.backends import open_backend  # heavy

    try:
        store, index = await open_backend(root, read_only=read_only)
    except NotARepository as error:
        raise context.advised(error) from None
    try:
        return await use(index)
    finally:
        await index.close()
        await store.close()


async def _no_token(_: Index) -> None:
    """Make none."""


async def _first_token(index: Index) -> str | None:
    if await index.tokens():
        return None
    return await _add_token(index, namespace=DEFAULT_NAMESPACE, label="made by the first start of serve")


async def _add_token(index: Index, *, namespace: str, label: str) -> str:
    made = secrets.token_urlsafe(TOKEN_BYTES)
    while made.startswith("-"):
        # Where a token is an argument, this one would be taken for an option.
        made = secrets.token_urlsafe(TOKEN_BYTES)
    async with index.transaction() as transaction:
        await transaction.add_token(token_digest(made), namespace=namespace, label=label)
    return made


async def _remove_token(index: Index, which: str) -> TokenRow:
    digest = token_digest(parse_setting("token", which, source="what was given"))
    is_beginning = _BEGINNING.match(which) is not None
    found = [row for row in await index.tokens() if row.digest == digest or (is_beginning and str(row.digest).startswith(which))]
    if len(found) != 1:
        # What was typed may be the token itself: it is not repeated.
        raise click.ClickException(
            f"that means {len(found)} tokens; `filestore token ls` shows which there are, and `rm` removes one"
        )
    async with index.transaction() as transaction:
        await transaction.remove_token(found[0].digest)
    return found[0]


def _row_line(row: TokenRow) -> str:
    return f"{str(row.digest)[:16]}  {minute(row.created_at)}  {row.namespace}  {for_display(row.label)}".rstrip()


def _row_result(row: TokenRow) -> dict[str, object]:
    return {
        "digest": str(row.digest),
        "namespace": row.namespace,
        "label": row.label,
        "created_at": format_timestamp(row.created_at),
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token_words(given: str | None, made: str | None, root: Path) -> str:
    if made is not None:
        return f"{made}  (shown this once, as only its digest is kept)"
    if given is not None:
        return "the one given by --token, FILESTORE_TOKEN or the configuration file, for this run; others are let in as before"
    return f"printed at the first start; `filestore token new --root {shlex.quote(for_display(root))}` makes another"


def reachable(url: str) -> str:
    """`url` as another machine would write it: an address that stands for all of them is no destination."""
    parts = urlsplit(url)
    if parts.hostname not in {"0.0.0.0", "::"}:  # noqa: S104  # compared, not bound
        return url
    return urlunsplit(parts._replace(netloc=f"{socket.gethostname()}:{parts.port}"))
