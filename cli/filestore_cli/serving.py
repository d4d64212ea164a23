"""The command serve, and the commands for the tokens of a folder."""

from __future__ import annotations

import ipaddress
import multiprocessing
import os
import re
import secrets
import shlex
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import click

from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE, checked_namespace
from filestore.core.timestamps import format_timestamp
from filestore.http.limits import ServerLimits
from filestore_cli.context import CommandContext, creates, takes
from filestore_cli.folders import removed_from_index, with_index
from filestore_cli.settings import Settings, parse_setting
from filestore_cli.start import run_to_end, say
from filestore_cli.text import for_display, minute, table

if TYPE_CHECKING:
    # Heavy: the commands import it when they run.
    from filestore.repository.index.protocol import Index, TokenRow

T = TypeVar("T")

TOKEN_BYTES = 32
SERVER_SETTINGS = ("spool_folder", "min_free", *(limit.name for limit in fields(ServerLimits)))
"""The names of the settings that every server has, without its address."""
NOT_SERVED = "nothing is served, because the start cannot be reported on standard output"

_BEGINNING = re.compile(r"[0-9a-f]{8,64}\Z")


@click.command(short_help="Serve a folder over HTTP.")
@creates
@takes("root", "host", "port", "workers", "token", *SERVER_SETTINGS)
def serve(context: CommandContext, *, create: bool) -> None:
    """Serve a folder over HTTP until Ctrl-C or SIGTERM stops it; then complete the current transfers.

    The first start makes the local folder and a token, and prints the token. With --token, that token is accepted until
    the server stops, and none is made. A folder that you name by --root becomes a repository only with --create.
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
            # Printed before anything else can fail: a new token is not stored, and not shown again.
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
            f"  {_token_line(settings.token, made, root)}",
            "  filestore push model.safetensors",
            "",
            f"listening on {url}",
            otherwise=NOT_SERVED,
        )

    serve_forever(
        lambda: open_backend(root, min_free=settings.min_free),
        workers=settings.workers,
        tokens={} if settings.token is None else {token_digest(settings.token): DEFAULT_NAMESPACE},
        announce=announce,
        announce_stop=stop_announcement(context),
        prepare=prepare,
        **server_arguments(settings, root),
    )


def stop_announcement(context: CommandContext) -> Callable[[], None]:
    """Return the function that says on standard output, for a person, that a server stops."""

    def announce_stop() -> None:
        if context.json:
            return  # the output is one object
        sentence = "stopping; the current transfers are completed, and a second signal stops the server at once\n"
        # Not through `sys.stdout`: what could not be written would fail again at the end.
        with suppress(OSError):
            os.write(1, sentence.encode())

    return announce_stop


def open_served(context: CommandContext, root: Path, *, create: bool, with_token: bool = False) -> tuple[bool, str | None]:
    """Make sure, in a child process, that `root` is a repository.

    Return whether the repository was made now, and the token that was made, or None.

    The default folder is always made a repository, and any other folder only with `create`. A token is made only if
    `with_token` is true and the repository has no token yet. Raises FilestoreError.
    """
    may_create = create or context.has_default_root

    async def opened() -> tuple[bool, str | None]:
        created = await _create(root) if may_create else False
        return created, await with_index(context, root, _first_token if with_token else _no_token)

    return in_child(lambda: run_to_end(opened()))


def folder_words(root: Path, *, created: bool) -> str:
    """Return the words for the folder in the output of a server's start."""
    return for_display(root) + (" (a new repository, made just now)" if created else "")


def server_arguments(settings: Settings, root: Path) -> dict[str, Any]:
    """Return the arguments of every server from the settings."""
    return {
        "host": settings.host,
        "port": settings.port,
        "limits": settings.server_limits,
        # The default is on the disk of the repository, since a temporary folder may be small, or in memory.
        "spool_folder": settings.spool_folder or root,
    }


def warn_if_open(host: str) -> None:
    """Print a warning if other machines can reach a server."""
    if not _is_loopback(host):
        say(
            f"Warning: {for_display(host)} can be reached from other machines, and traffic is not encrypted: "
            "others on the network can read the token and the files. Put a proxy that speaks TLS before the server."
        )


@click.group(short_help="Make, list and remove access tokens.")
def token() -> None:
    """Make, list and remove the tokens of a folder."""


@token.command("new", short_help="Make a token and print it.")
@click.option(
    "--namespace",
    default=DEFAULT_NAMESPACE,
    show_default=True,
    help="The namespace that the token sees. Files and chunks are shared only inside it.",
)
@click.option("--label", default="", help="What the token is for, in your own words.")
@creates
@takes("root")
def new_token(context: CommandContext, namespace: str, label: str, *, create: bool) -> None:
    """Make a token and print it once."""
    checked_namespace(namespace)
    if not label.isprintable():
        raise click.BadParameter("a label is one line of printable text", param_hint="--label")
    root = context.settings.root.absolute()
    created = create and run_to_end(_create(root))
    made = run_to_end(with_index(context, root, lambda index: _add_token(index, namespace=namespace, label=label)))
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
        f"The token gives access to the namespace {namespace} of {for_display(root)}. "
        "It is not shown again, because only its digest is stored."
    )


@token.command("ls", short_help="List the tokens.")
@takes("root")
def list_tokens(context: CommandContext) -> None:
    """List the valid tokens, the oldest first, by the beginning of their digests."""
    root = context.settings.root.absolute()
    rows = run_to_end(with_index(context, root, lambda index: index.tokens(), read_only=True))
    context.show(
        {"tokens": [_row_result(row) for row in rows], "root": str(root)},
        *map(_row_line, rows),
        f"{len(rows)} token{'' if len(rows) == 1 else 's'} in {for_display(root)}",
    )


@token.command("rm", short_help="Remove a token.")
@click.argument("which", metavar="TOKEN|DIGEST")
@takes("root")
def remove_token(context: CommandContext, which: str) -> None:
    """Revoke a token. Give the token itself, its digest, or the first 8 or more digits of the digest."""
    root = context.settings.root.absolute()
    row = run_to_end(removed_from_index(context, root, lambda index: _remove_token(index, which)))
    context.show({**_row_result(row), "root": str(root)}, f"Token {row.digest} revoked")


def in_child(function: Callable[[], T]) -> T:
    """Run `function` in a child process. Return what it returns, and raise what it raises.

    The server forks its workers. Threads and open databases of this process would not work in them.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(function, sender))
    child.start()
    sender.close()
    try:
        succeeded, result = receiver.recv()
    except EOFError:
        raise click.ClickException("the process that opens the folder died; look for the reason in the system's log") from None
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
        return  # the same key interrupted the parent, which reports it
    except Exception as error:  # noqa: BLE001  # raised again in the parent
        answer = (False, error)
    sender.send(answer)


async def _create(root: Path) -> bool:
    from filestore.backends import create_repository  # heavy

    return await create_repository(root)


async def _no_token(_: Index) -> None:
    """Return None in place of a token."""


async def _first_token(index: Index) -> str | None:
    if await index.tokens():
        return None
    return await _add_token(index, namespace=DEFAULT_NAMESPACE, label="made by the first start of serve")


async def _add_token(index: Index, *, namespace: str, label: str) -> str:
    made = secrets.token_urlsafe(TOKEN_BYTES)
    while made.startswith("-"):
        # As an argument, this token would look like an option.
        made = secrets.token_urlsafe(TOKEN_BYTES)
    async with index.transaction() as transaction:
        await transaction.add_token(token_digest(made), namespace=namespace, label=label)
    return made


async def _remove_token(index: Index, which: str) -> TokenRow:
    digest = token_digest(parse_setting("token", which, source="what was given"))
    is_beginning = _BEGINNING.match(which) is not None
    found = [row for row in await index.tokens() if row.digest == digest or (is_beginning and str(row.digest).startswith(which))]
    if len(found) != 1:
        # The argument may be the token itself, so it is not repeated.
        raise click.ClickException(
            f"{len(found)} tokens match; `filestore token ls` lists the tokens, and `filestore token rm` needs exactly one"
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
        return f"{made}  (shown only this once, because only its digest is stored)"
    if given is not None:
        return "the one of --token, FILESTORE_TOKEN or the configuration file; the tokens of the folder work as well"
    return f"printed at the first start; `filestore token new --root {shlex.quote(for_display(root))}` makes another"


def _token_line(given: str | None, made: str | None, root: Path) -> str:
    if made is not None:
        return f"export FILESTORE_TOKEN={made}"
    if given is not None:
        return "# export FILESTORE_TOKEN=...  (the token that this server was given)"
    another = f"`filestore token new --root {shlex.quote(for_display(root))}` makes another one"
    return f"# export FILESTORE_TOKEN=...  (the token that the first start printed; {another})"


def reachable(url: str) -> str:
    """Return a URL that another machine can use.

    An address that means all interfaces is replaced, since it is not a destination.
    """
    parts = urlsplit(url)
    if parts.hostname not in {"0.0.0.0", "::"}:  # noqa: S104  # compared, not bound
        return url
    return urlunsplit(parts._replace(netloc=f"{socket.gethostname()}:{parts.port}"))
