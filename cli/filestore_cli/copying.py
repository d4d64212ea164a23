"""The command copy: stored files move from one repository to another one, without decoding."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from filestore.core.commits import printable
from filestore.core.object_location import has_password, is_object_store
from filestore.core.references import Reference
from filestore.errors import TokenMissing, Unauthorized
from filestore.repository.protocol import whole_reference_of
from filestore_cli.auditing import user_name
from filestore_cli.context import CommandContext, takes
from filestore_cli.hints import explained
from filestore_cli.lookup import record_of
from filestore_cli.parameters import NonemptyPath
from filestore_cli.plain_http import check_plain_http
from filestore_cli.progress import COPY, PLAN, show_progress
from filestore_cli.start import run_to_end
from filestore_cli.text import duration, exactly, for_display, table
from filestore_cli.token_files import read_token, warn_of_password

if TYPE_CHECKING:
    # Heavy: the command imports these when it runs.
    from filestore.repository.protocol import Repository
    from filestore.transfer.copy import CopyPlan, CopyResult

_TO_TOKEN_FILE = "--to-token-file"  # noqa: S105  # the name of an option


class Target(NamedTuple):
    """The repository that is copied to."""

    url: str | None
    """None means the repository that has the file."""
    index_url: str | None
    token_file: Path | None
    is_created: bool


class Copied(NamedTuple):
    """The result of a copy or of a plan, and words for the repositories."""

    done: CopyResult | CopyPlan
    source: str
    target: str
    location: str
    """The target, as a program reads it."""
    created: bool = False


@click.command(short_help="Copy a stored file to another repository or name.")
@click.argument("reference", metavar="ID|DIGEST|PATH|NAME[@REV]")
@click.argument("name", metavar="[NEW_NAME]", required=False)
@click.option("--to", metavar="REPOSITORY", help="The server or folder to copy to.  [default: the same repository]")
@click.option(_TO_TOKEN_FILE, type=NonemptyPath(), metavar="FILE", help="The file that has the token for that server.")
@click.option("--to-index", metavar="URL", help="The PostgreSQL database of that repository, if it is an object store.")
@click.option("--message", metavar="TEXT", help="What `filestore log` says about it.  [default: the message of the version]")
@click.option("--all-versions", is_flag=True, help="Copy all versions of the name, with their messages and tags.")
@click.option("--dry-run", is_flag=True, help="Send and record nothing; show what would be sent.")
@click.option("--create", is_flag=True, help="First make the folder of --to a repository, if it is not one yet.")
@takes("url", "token", "connections", "stall_seconds", "retry_seconds", "limit_rate", "presigned_reads", "min_free")
def copy(
    context: CommandContext,
    reference: str,
    name: str | None,
    *,
    to: str | None,
    to_token_file: Path | None,
    to_index: str | None,
    message: str | None,
    all_versions: bool,
    dry_run: bool,
    create: bool,
) -> None:
    """Copy a stored file or directory to the repository of --to, and send only what is missing there.

    Without --to, the version gets the name NEW_NAME too, and nothing is sent. Frames are sent as they are stored, and
    verified where they arrive; no disk of this machine is used. --url and --token-file are for the repository that has the
    file.
    """
    target = Target(to, to_index, to_token_file, create)
    _check(target, name, message, dry_run=dry_run, all_versions=all_versions)
    wanted = Reference.parse(reference)
    if dry_run:
        done = run_to_end(_plan(context, wanted, target, name=name, all_versions=all_versions))
    else:
        done = run_to_end(_copy(context, wanted, target, name=name, message=message, all_versions=all_versions))
    context.show(_result(done), *_lines(done))


def _check(target: Target, name: str | None, message: str | None, *, dry_run: bool, all_versions: bool) -> None:
    """Raise click.UsageError if the options contradict one another."""
    _check_target(target)
    if name is not None and "://" in name:
        raise click.UsageError(f"{for_display(name)} is the URL of a repository, and not a new name; give it by --to")
    if name is not None and name.startswith(("/", "./", "../", "~")):
        raise click.UsageError(f"{for_display(name)} is a path of this machine, and not a new name; give a repository by --to")
    if target.url is None and name is None:
        raise click.UsageError("it says neither a new name nor --to, so there is nothing to copy; give one of them")
    if dry_run and target.is_created:
        raise click.UsageError("--create makes a repository, and --dry-run makes nothing; give one of them")
    if all_versions and message is not None:
        raise click.UsageError("--all-versions copies each version with its own message; leave out --message")


def _check_target(target: Target) -> None:
    """Raise click.UsageError if the options for the target do not go together."""
    if target.url == "":
        raise click.UsageError("--to is empty, as from a variable that is not set; give a server's URL or the path of a folder")
    if target.url is None:
        for option, value in (
            (_TO_TOKEN_FILE, target.token_file),
            ("--to-index", target.index_url),
            ("--create", target.is_created),
        ):
            if value:
                raise click.UsageError(f"{option} is about the repository to copy to; name that by --to")
    elif is_object_store(target.url) is not (target.index_url is not None):
        raise click.UsageError("an object store has its index in a database: --to s3://... and --to-index go together")
    if target.index_url is not None and has_password(target.index_url):
        warn_of_password()


@asynccontextmanager
async def _opened(context: CommandContext, target: Target, *, reads: bool) -> AsyncIterator[tuple[Repository, Repository | None]]:
    """Open both repositories. The second one is None if it is the same. With `reads`, nothing will be written."""
    async with AsyncExitStack() as stack:
        to = None
        is_same = target.url is None
        # First: the message about a wrong source names an option that the user knows.
        source = await stack.enter_async_context(context.repository(read_only=reads or not is_same))
        with _naming_its_token(source):
            if target.url is not None:
                token = _token(context, target)
                check_plain_http(target.url, replace(context.settings, token=token))
                to = await stack.enter_async_context(
                    context.connecting(target.url, index=target.index_url, token=token, read_only=reads, peers=None)
                )
            yield source, to


@contextmanager
def _naming_its_token(source: Repository) -> Iterator[None]:
    """Raise ClickException, which names --to-token-file, for a token that another server than that of the source refused."""
    try:
        yield
    except Unauthorized as error:
        if error.named_facts()["where"] == source.location:
            raise
        is_missing = isinstance(error, TokenMissing)
        said = f"{error}; {_TO_TOKEN_FILE} gives it" if is_missing else explained(error, token_source=_TO_TOKEN_FILE)
        raise click.ClickException(for_display(said)) from error


def _token(context: CommandContext, target: Target) -> str | None:
    """Return the token for the target. That of the source is sent to no other server."""
    if target.token_file is not None:
        return read_token(target.token_file, source=_TO_TOKEN_FILE)
    return context.settings.token if target.url == context.settings.url else None


async def _copy(
    context: CommandContext, wanted: Reference, target: Target, *, name: str | None, message: str | None, all_versions: bool
) -> Copied:
    from filestore.system.own_process import tune_process  # heavy

    tune_process()
    from filestore.transfer.copy import copy as copy_stored  # heavy

    created = target.is_created and await context.create_repository(target.url, index=target.index_url)
    async with (
        _opened(context, target, reads=False) as (source, to),
        show_progress(COPY, str(wanted), enabled=context.shows_progress, repository=to or source) as report,
    ):
        await record_of(source, whole_reference_of(wanted))  # its message says what the user may have meant
        done = await copy_stored(
            source,
            wanted,
            to=to,
            name=name,
            message=message,
            author=printable(user_name()),
            all_versions=all_versions,
            report=report,
        )
        return _copied(context, done, source, to, created=created)


async def _plan(context: CommandContext, wanted: Reference, target: Target, *, name: str | None, all_versions: bool) -> Copied:
    from filestore.transfer.copy import plan_copy  # heavy

    async with (
        _opened(context, target, reads=True) as (source, to),
        show_progress(PLAN, str(wanted), enabled=context.shows_progress, repository=to or source) as report,
    ):
        await record_of(source, whole_reference_of(wanted))  # its message says what the user may have meant
        done = await plan_copy(source, wanted, to=to, name=name, all_versions=all_versions, report=report)
        return _copied(context, done, source, to)


def _copied(
    context: CommandContext, done: CopyResult | CopyPlan, source: Repository, to: Repository | None, *, created: bool = False
) -> Copied:
    target = context.place(source) if to is None else for_display(to.location)
    return Copied(done, context.place(source), target, (to or source).location, created)


def _result(copied: Copied) -> dict[str, object]:
    from filestore.transfer.copy import CopyPlan  # heavy

    done = copied.done
    if isinstance(done, CopyPlan):
        values: dict[str, object] = {
            "digest": str(done.record.digest),
            "name": done.name,
            "size": done.size,
            "bytes_new": done.bytes_new,
            "bytes_shared": done.bytes_shared,
            "version_count": done.version_count,
        }
    else:
        values = {
            **done.record.as_json(),
            "bytes_sent": done.bytes_sent,
            "bytes_shared": done.bytes_shared,
            "version_count": done.version_count,
            "tag_count": done.tag_count,
            "repository_created": copied.created,
        }
    return {**values, "seconds": done.seconds, "repository": copied.location}


def _lines(copied: Copied) -> list[str]:
    from filestore.transfer.copy import CopyPlan  # heavy

    done = copied.done
    places = {"from": copied.source, "to": copied.target}
    if isinstance(done, CopyPlan):
        lines = table(
            digest=done.record.digest,
            name=for_display(done.name),
            **_count("versions", done.version_count),
            size=exactly(done.size),
            new=exactly(done.bytes_new),
            shared=exactly(done.bytes_shared),
            time=duration(done.seconds),
            **places,
        )
        return [*lines, "Nothing was sent or recorded."]
    return table(
        id=done.record.id,
        digest=done.record.digest,
        name=for_display(done.record.full_name),
        **_count("versions", done.version_count),
        **_count("tags", done.tag_count, least=1),
        size=exactly(done.record.size),
        sent=exactly(done.bytes_sent),
        shared=exactly(done.bytes_shared),
        time=duration(done.seconds),
        **places,
    )


def _count(name: str, count: int, *, least: int = 2) -> dict[str, str]:
    """Return a line with a count. The usual one is not shown."""
    return {name: f"{count:,}"} if count >= least or (name == "versions" and not count) else {}
