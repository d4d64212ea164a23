"""The commands push, hash and create file."""

from __future__ import annotations

import functools
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import click

from filestore.core.commits import MAIN, printable
from filestore.core.records import Kind
from filestore.core.references import redact_url
from filestore.errors import FilestoreError, NotFound, ServerError, TransferError, Unauthorized
from filestore_cli.auditing import user_name
from filestore_cli.context import TRANSFER_SETTINGS, CommandContext, creates, is_pipeline, takes
from filestore_cli.history import SHORT_ID
from filestore_cli.parameters import STANDARD_INPUT, NonemptyPath, PathOrInput
from filestore_cli.progress import HASH, PLAN, PUSH, show_items, show_progress
from filestore_cli.several import Failures, expand_patterns, refuse_equal, show_blocks
from filestore_cli.start import run_to_end
from filestore_cli.text import Rows, duration, exactly, file_rows, for_display, in_units, table, time_taken

if TYPE_CHECKING:
    # Heavy: the commands import these when they run.
    from filestore.core.commits import Commit
    from filestore.core.manifest import Manifest
    from filestore.core.progress import Report
    from filestore.core.records import Record
    from filestore.format.codec import Codec
    from filestore.repository.protocol import Repository
    from filestore.transfer.push import PushPlan, PushResult
    from filestore.transfer.sources.push_cache import PushCache
    from filestore.transfer.sources.walk import Symlinks

SYMLINKS = ("inside", "follow", "keep", "refuse")
"""The values of `filestore.transfer.sources.walk.Symlinks`."""

_INPUT_NAME = "standard input"
_PATH = NonemptyPath()
_NOTHING_SENT = "Nothing was sent or recorded."


class Selection(NamedTuple):
    """The user's choice of what to take from a directory."""

    symlinks: str | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]

    def check(self, path: Path) -> None:
        """Raise ClickException if the user chose something, and `path` is not a directory."""
        if any(self) and path.exists() and not path.is_dir():
            raise click.ClickException(
                f"{for_display(path)} is not a directory; --symlinks, --include and --exclude are only for directories"
            )

    def arguments(self) -> WalkArguments:
        """Return the choice as arguments of `walk`."""
        from filestore.transfer.sources.walk import Symlinks  # heavy

        return WalkArguments(symlinks=Symlinks(self.symlinks or "inside"), include=self.include, exclude=self.exclude)


class WalkArguments(TypedDict):
    """The arguments of `filestore.transfer.sources.walk.walk`, and of the functions that call it."""

    symlinks: Symlinks
    include: tuple[str, ...]
    exclude: tuple[str, ...]


def selects(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a Selection, and pass it as the argument `selection`."""

    @functools.wraps(command)
    def call(*, symlinks: str | None, include: tuple[str, ...], exclude: tuple[str, ...], **arguments: Any) -> None:
        command(selection=Selection(symlinks, include, exclude), **arguments)

    for option in (
        click.option("--exclude", metavar="GLOB", multiple=True, help="Leave out matching entries of a directory; repeatable."),
        click.option("--include", metavar="GLOB", multiple=True, help="Take only matching entries of a directory; repeatable."),
        click.option(
            "--symlinks",
            type=click.Choice(SYMLINKS),
            help="Symbolic links in a directory: take the target if it is inside (inside), any target (follow), "
            "the link itself (keep), or none (refuse).  [default: inside]",
        ),
    ):
        call = option(call)
    return call


@click.command(short_help="Store files and directories.")
@click.argument("paths", metavar="PATH...", type=PathOrInput(), nargs=-1, required=True)
@click.option("--name", help="The name of the record, with or without OWNER/.  [default: file name, or DIR.zip]")
@click.option("--branch", default=MAIN, metavar="BRANCH", help="The branch of the name to add it to.  [default: main]")
@click.option("--message", default="", metavar="TEXT", help="What `filestore log` says about this version.")
@click.option("--rehash", is_flag=True, help="Read files even if they have not changed since their last push.")
@click.option("--dry-run", is_flag=True, help="Send and record nothing; show what would be sent, entry by entry.")
@selects
@creates
@takes(*TRANSFER_SETTINGS, "codec", "push_cache", "min_free")
def push(
    context: CommandContext,
    paths: tuple[Path, ...],
    name: str | None,
    *,
    branch: str,
    message: str,
    rehash: bool,
    dry_run: bool,
    create: bool,
    selection: Selection,
) -> None:
    """Store the file or directory at each PATH, and send only what the repository does not have.

    PATH may be `-`, for what another program writes to standard input: `tar c data | filestore push - --name data.tar`.

    A pattern such as 'ckpt-*' means all that match it, also where no shell expands it. If one of several fails, the others are
    stored all the same.
    """
    sources, is_several = expand_patterns(paths)
    reads_input = STANDARD_INPUT in sources
    if reads_input:
        _check_input(sources, name, selection, rehash=rehash, dry_run=dry_run)
    elif is_several and name is not None:
        raise click.UsageError("--name names one file or directory, and several are given; push each with its own --name")
    for path in sources:
        selection.check(path)
    if dry_run and create:
        raise click.UsageError("--create makes a repository, and --dry-run makes nothing; give one of them")
    failures = Failures() if is_several else None
    if dry_run:
        _show_plans(context, run_to_end(_plan_each(context, sources, failures, rehash=rehash, selection=selection)), failures)
        return
    if is_several:
        refuse_equal(
            _names_of(sources),
            "{given} would both be stored under the name {made}; push them one by one, each with its own --name",
        )
    pushing = _Pushing(name, rehash, create, selection, codec_of(context.settings.codec), message, branch, reads_input)
    _show_pushed(context, run_to_end(_push_each(context, sources, pushing, failures)), failures)


def _check_input(paths: Sequence[Path], name: str | None, selection: Selection, *, rehash: bool, dry_run: bool) -> None:
    """Raise UsageError or ClickException if standard input cannot be pushed with these options."""
    if len(paths) > 1:
        raise click.UsageError("- is standard input, which is pushed alone; ./- is a file of that name")
    if name is None:
        raise click.UsageError("what comes from standard input has no name; give one by --name (./- is a file of the name -)")
    if dry_run or rehash or any(selection):
        raise click.UsageError(
            "standard input is one file, which is read once: leave out --dry-run, --rehash and the options of directories"
        )
    if sys.stdin is None:
        raise click.ClickException("standard input is closed; let a program write to it")
    if sys.stdin.isatty():
        raise click.ClickException(
            "standard input is a terminal; let a program write to it, as in `tar c data | filestore push - --name data.tar`"
        )


def _show_pushed(context: CommandContext, pushed: _AllDone, failures: Failures | None) -> None:
    stored, about = pushed.stored, pushed.about_repository
    if failures is None:
        context.show(_pushed_result(stored[0]) | about, *table(**_pushed_rows(stored[0]), repository=pushed.place))
        return
    results = {"pushed": [_pushed_result(done) for done in stored], "failed": failures.as_json("path"), **about}
    show_blocks(context, results, [table(**_pushed_rows(done)) for done in stored], place=pushed.place, failures=failures)


def _show_plans(context: CommandContext, planned: _AllPlanned, failures: Failures | None) -> None:
    plans, about = planned.plans, {"repository": planned.location}
    if failures is None:
        [(_, plan)] = plans
        context.show(_plan_result(plan) | about, *_plan_lines(plan, repository=planned.place), _NOTHING_SENT)
        return
    results = {
        "planned": [{"path": str(path), **_plan_result(plan)} for path, plan in plans],
        "failed": failures.as_json("path"),
        **about,
    }
    blocks = [[f"{for_display(path)}:", *_plan_lines(plan), _NOTHING_SENT] for path, plan in plans]
    show_blocks(context, results, blocks, place=planned.place, failures=failures)


@click.group(short_help="Store a file for pipelines.")
def create() -> None:
    """Store files as users of the Pipeline SDK know it."""


@create.command("file", short_help="Store a file or directory; print its id.")
@click.argument("path", type=_PATH)
@click.option("-r", "--recursive", is_flag=True, help="PATH is a directory.")
@click.option("--name", "-n", help="The name of the record.  [default: file name, or DIR.zip]")
@creates
@takes(*TRANSFER_SETTINGS, "codec", "push_cache", in_pipeline=True)
def create_file(context: CommandContext, path: Path, name: str | None, *, recursive: bool, create: bool) -> None:
    """Store the file at PATH, or with -r the directory, and print its id as the Pipeline SDK does.

    `filestore create file` uses the repository of all filestore commands. `pipeline create file` uses the server of the
    Pipeline SDK: the active one of `pipeline cluster login`, or that of PIPELINE_API_URL and PIPELINE_API_TOKEN.
    """
    if path.is_dir() and not recursive:
        raise click.ClickException(f"{for_display(path)} is a directory; give -r to store it")
    if recursive and path.exists() and not path.is_dir():
        raise click.ClickException(f"{for_display(path)} is not a directory; leave out -r to store it")
    if is_pipeline() and context.settings.url is None:
        raise click.ClickException(
            "no server was found to store it on: `pipeline cluster login` has stored no active one, and PIPELINE_API_URL is not "
            "set; set PIPELINE_API_URL and PIPELINE_API_TOKEN, or use `filestore create file` for the local folder"
        )
    everything = Selection(None, (), ())
    try:
        pushing = _Pushing(name, rehash=False, create=create, selection=everything, codec=codec_of(context.settings.codec))
        pushed = run_to_end(_push_each(context, [path], pushing, None))
    except (TransferError, Unauthorized):
        context.note(f"The server is {_server_words(context)}.")
        raise
    [done] = pushed.stored
    context.show(_pushed_result(done) | pushed.about_repository, f"Pipeline File created with ID= {done.pushed.record.id}")
    # Standard output is exactly that line, for the scripts that read it.
    if is_pipeline():
        context.note(f"It is stored on {_server_words(context)}.")
    elif context.settings.url is None:
        unused = "; PIPELINE_API_URL is only for `pipeline create file`" if os.environ.get("PIPELINE_API_URL") else ""
        context.note(f"It is stored in {pushed.place}{unused}.")


def _server_words(context: CommandContext) -> str:
    """Return words that name the server of `pipeline create file`, and say where its URL is from."""
    if context.sdk_server is None:
        return for_display(redact_url(str(context.settings.url)))
    return f"{for_display(redact_url(context.sdk_server.url))} (from {context.sdk_server.source})"


@click.command("hash", short_help="Print the digest of a file or directory.")
@click.argument("path", type=_PATH)
@selects
@takes()
def hash_path(context: CommandContext, path: Path, *, selection: Selection) -> None:
    """Print the digest that a push of PATH gives, without a repository."""
    selection.check(path)
    started = time.monotonic()
    manifest = run_to_end(_hash(context, path, selection))
    context.show(
        {
            "digest": str(manifest.digest),
            "path": str(path),
            "size": manifest.size,
            "chunks": len(manifest.chunks),
            "chunking_version": manifest.chunking_version,
            "seconds": time.monotonic() - started,
        },
        f"{manifest.digest}  {for_display(path)}",
    )


class _Pushing(NamedTuple):
    """The choices of a user for all pushes of a command."""

    name: str | None
    rehash: bool
    create: bool
    selection: Selection
    codec: Codec | None
    message: str = ""
    branch: str = MAIN
    reads_input: bool = False
    """Whether standard input is pushed, and not the path."""


class PushArguments(TypedDict):
    """The arguments of `push` and of `push_stream`."""

    message: str
    author: str
    branch: str
    codec: Codec | None
    report: Report | None


class _Done(NamedTuple):
    """The result of a push."""

    pushed: PushResult
    commit: Commit | None
    """The commit that it is now. None if the repository has none."""


class _AllDone(NamedTuple):
    """The results of the pushes of a command, and where they were stored."""

    stored: list[_Done]
    place: str
    """Words that name the repository."""
    location: str
    created: bool
    """Whether the repository was made for them."""

    @property
    def about_repository(self) -> dict[str, object]:
        """What the result says of the repository."""
        return {"repository": self.location, "repository_created": self.created}


class _AllPlanned(NamedTuple):
    """The plans of the pushes of a command, each with its path."""

    plans: list[tuple[Path, PushPlan]]
    place: str
    location: str


def _names_of(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield the name that each path gets, and the path. One without a name fails later, alone."""
    from filestore.transfer.push import default_name  # heavy

    for path in paths:
        with suppress(FilestoreError, OSError):
            yield default_name(path), str(path)


def _sizes_of(paths: Sequence[Path]) -> list[int | None]:
    """Return the size of each file, and None for a directory, which has to be walked, and for a stream."""
    return [_size_of(path) for path in paths]


def _size_of(path: Path) -> int | None:
    try:
        found = path.stat()
    except OSError:
        return 0  # its push fails, alone
    return found.st_size if stat.S_ISREG(found.st_mode) else None


async def _push_each(context: CommandContext, paths: Sequence[Path], pushing: _Pushing, failures: Failures | None) -> _AllDone:
    """Push each path. What goes wrong with one of several is noted in `failures`. Without that, it is raised."""
    from filestore.system.own_process import tune_process  # heavy

    tune_process()
    from filestore.transfer.sources.push_cache import PushCache  # heavy

    settings = context.settings
    noted = Failures.raised() if failures is None else failures
    stored: list[_Done] = []
    created = pushing.create and await context.create_repository()
    with PushCache(settings.push_cache) as push_cache:
        async with (
            context.repository() as repository,
            show_items(PUSH, _sizes_of(paths), enabled=context.shows_progress, repository=repository) as items,
        ):
            noted.tell = items.tell
            for path in noted.each(paths, str):
                label = _INPUT_NAME if pushing.reads_input else _label(path)
                with noted.of(str(path)), items.item(label) as report:
                    stored.append(await _push(context, repository, path, pushing, push_cache, report=report))
    return _AllDone(stored, context.place(repository), repository.location, created)


async def _push(
    context: CommandContext,
    repository: Repository,
    path: Path,
    pushing: _Pushing,
    push_cache: PushCache,
    *,
    report: Report | None,
) -> _Done:
    from filestore.transfer.push_stream import push_stream  # heavy
    from filestore_cli.hub_snapshots import push_path

    same = PushArguments(
        message=pushing.message, author=printable(user_name()), branch=pushing.branch, codec=pushing.codec, report=report
    )
    if pushing.reads_input and pushing.name is not None:
        pushed = await push_stream(repository, sys.stdin.fileno(), name=pushing.name, source_name=_INPUT_NAME, **same)
    else:
        walking = pushing.selection.arguments()
        pushed = await push_path(
            repository,
            path,
            note=context.note,
            name=pushing.name,
            push_cache=push_cache,
            rehash=pushing.rehash,
            **same,
            **walking,
        )
    return _Done(pushed, await _commit_of(repository, pushed.record, pushing.branch))


async def _commit_of(repository: Repository, record: Record, branch: str) -> Commit | None:
    """Return the newest commit of a branch, if it stored this record."""
    try:
        commit = await repository.find_commit(record.full_name, None if branch == MAIN else f"refs/heads/{branch}")
    except (NotFound, ServerError):
        # An earlier version of the server has no commits.
        return None
    return commit if commit.file_id == record.id else None


async def _plan_each(
    context: CommandContext, paths: Sequence[Path], failures: Failures | None, *, rehash: bool, selection: Selection
) -> _AllPlanned:
    """Return each path with its plan. `failures` is as in `_push_each`."""
    from filestore.transfer.sources.push_cache import PushCache  # heavy
    from filestore_cli.hub_snapshots import plan_path

    noted = Failures.raised() if failures is None else failures
    plans: list[tuple[Path, PushPlan]] = []
    with PushCache(context.settings.push_cache) as push_cache:
        async with (
            context.repository(read_only=True) as repository,
            show_items(PLAN, _sizes_of(paths), enabled=context.shows_progress, repository=repository) as items,
        ):
            noted.tell = items.tell
            for path in noted.each(paths, str):
                with noted.of(str(path)), items.item(_label(path)) as report:
                    plan = await plan_path(
                        repository,
                        path,
                        note=context.note,
                        push_cache=push_cache,
                        rehash=rehash,
                        report=report,
                        **selection.arguments(),
                    )
                    plans.append((path, plan))
    return _AllPlanned(plans, context.place(repository), repository.location)


async def _hash(context: CommandContext, path: Path, selection: Selection) -> Manifest:
    from filestore.transfer.push import manifest_of  # heavy

    async with show_progress(HASH, _label(path), enabled=context.shows_progress) as report:
        return await manifest_of(path, report=report, **selection.arguments())


def _label(path: Path) -> str:
    # The names `.` and `..` say nothing to the user.
    return path.resolve().name if os.path.isdir(path) else path.name  # noqa: PTH112  # it raises nothing for a long name


def codec_of(choice: str) -> Codec | None:
    """Return the codec that the setting `codec` means. None means the best codec for each chunk."""
    from filestore.format.codec import Codec  # heavy

    return None if choice == "auto" else Codec[choice.upper().replace("+", "_")]


def _pushed_rows(done: _Done) -> Rows:
    pushed = done.pushed
    return {
        "id": pushed.record.id,
        "digest": pushed.record.digest,
        "path": for_display(pushed.record.path),
        "name": for_display(pushed.record.full_name),
        **_commit_digits(done),
        "size": exactly(pushed.record.size),
        **file_rows(pushed.file_count, is_tree=pushed.record.kind is Kind.DIRECTORY),
        "sent": exactly(pushed.bytes_sent),
        "shared": exactly(pushed.bytes_shared),
        "time": time_taken(pushed.seconds, pushed.bytes_sent),
    }


def _commit_digits(done: _Done) -> dict[str, str]:
    """Return the row of the commit. One that is the only version of a name without an owner is not shown."""
    commit = done.commit
    if commit is None or (commit.parent is None and done.pushed.record.owner is None):
        return {}
    return {"commit": commit.id[:SHORT_ID]}


def _pushed_result(done: _Done) -> dict[str, object]:
    pushed = done.pushed
    return {
        **pushed.record.as_json(),
        "commit": None if done.commit is None else done.commit.id,
        "file_count": pushed.file_count,
        "bytes_read": pushed.bytes_read,
        "bytes_sent": pushed.bytes_sent,
        "bytes_shared": pushed.bytes_shared,
        "seconds": pushed.seconds,
    }


def _plan_result(plan: PushPlan) -> dict[str, object]:
    return {
        "digest": str(plan.digest),
        "size": plan.size,
        "entries": [{"name": entry.name, "size": entry.size, "bytes_new": entry.bytes_new} for entry in plan.entries],
        "bytes_new": plan.bytes_new,
        "bytes_shared": plan.bytes_shared,
        "bytes_read": plan.bytes_read,
        "seconds": plan.seconds,
    }


def _plan_lines(plan: PushPlan, **more: str) -> list[str]:
    """Return the lines of a plan. `more` are further rows at the end."""
    rows = [("size", "new", "name")]
    rows += [(in_units(entry.size), in_units(entry.bytes_new), for_display(entry.name)) for entry in plan.entries]
    return [
        *(f"{size:>8}  {new:>8}  {name}" for size, new, name in rows),
        "",
        *table(
            digest=plan.digest,
            size=exactly(plan.size),
            new=exactly(plan.bytes_new) + ("; they are encoded first, so that fewer are sent" if plan.bytes_new else ""),
            shared=exactly(plan.bytes_shared),
            time=duration(plan.seconds),
            **more,
        ),
    ]
