"""The commands push, fetch, hash and create file."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import click

from filestore.core.commits import MAIN, printable
from filestore.core.names import tree_name
from filestore.core.records import Kind
from filestore.core.references import Reference, redact_url
from filestore.errors import NotFound, ServerError, TargetError, TransferError, Unauthorized
from filestore.system.files import EMPTY_PATH
from filestore_cli.auditing import user_name
from filestore_cli.context import CommandContext, creates, is_pipeline, takes
from filestore_cli.history import SHORT_ID
from filestore_cli.lookup import record_of
from filestore_cli.parameters import NonemptyPath
from filestore_cli.progress import FETCH, HASH, PLAN, PUSH, show_progress
from filestore_cli.start import run_to_end
from filestore_cli.text import duration, exactly, for_display, in_units, table

if TYPE_CHECKING:
    # Heavy: the commands import these when they run.
    from filestore.core.commits import Commit
    from filestore.core.manifest import Manifest
    from filestore.core.records import Record
    from filestore.format.codec import Codec
    from filestore.repository.protocol import Repository
    from filestore.transfer.fetch import FetchResult
    from filestore.transfer.fetch_tree import FetchTreeResult
    from filestore.transfer.push import PushPlan, PushResult
    from filestore.transfer.sources.walk import Symlinks

SYMLINKS = ("inside", "follow", "keep", "refuse")
"""The values of `filestore.transfer.sources.walk.Symlinks`."""

_PATH = NonemptyPath()
_CONNECTION = ("url", "token", "connections", "processes", "transfer_memory", "stall_seconds", "retry_seconds", "limit_rate")


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


def _selects(command: Callable[..., None]) -> Callable[..., None]:
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


@click.command(short_help="Store a file or directory.")
@click.argument("path", type=_PATH)
@click.option("--name", help="The name of the record, with or without OWNER/.  [default: file name, or DIR.zip]")
@click.option("--branch", default=MAIN, metavar="BRANCH", help="The branch of the name to add it to.  [default: main]")
@click.option("--message", default="", metavar="TEXT", help="What `filestore log` says about this version.")
@click.option("--rehash", is_flag=True, help="Read files even if they have not changed since their last push.")
@click.option("--dry-run", is_flag=True, help="Send and record nothing; show what would be sent, entry by entry.")
@_selects
@creates
@takes(*_CONNECTION, "codec", "push_cache", "min_free")
def push(
    context: CommandContext,
    path: Path,
    name: str | None,
    *,
    branch: str,
    message: str,
    rehash: bool,
    dry_run: bool,
    create: bool,
    selection: Selection,
) -> None:
    """Store the file or directory at PATH, and send only what the repository does not have."""
    selection.check(path)
    if dry_run and create:
        raise click.UsageError("--create makes a repository, and --dry-run makes nothing; give one of them")
    if dry_run:
        plan, place, location = run_to_end(_plan_push(context, path, rehash=rehash, selection=selection))
        context.show(_plan_result(plan, location), *_plan_lines(plan, place))
        return
    done = run_to_end(
        _push(context, path, name=name, message=message, branch=branch, rehash=rehash, create=create, selection=selection)
    )
    pushed = done.pushed
    context.show(
        _pushed_result(done),
        *table(
            id=pushed.record.id,
            digest=pushed.record.digest,
            path=for_display(pushed.record.path),
            name=for_display(pushed.record.full_name),
            **_commit_digits(done),
            size=exactly(pushed.record.size),
            **_files(pushed.file_count, is_tree=pushed.record.kind is Kind.DIRECTORY),
            sent=exactly(pushed.bytes_sent),
            shared=exactly(pushed.bytes_shared),
            time=_time(pushed.seconds, pushed.record.size),
            repository=done.place,
        ),
    )


@click.group(short_help="Store a file for pipelines.")
def create() -> None:
    """Store files as users of the Pipeline SDK know it."""


@create.command("file", short_help="Store a file or directory; print its id.")
@click.argument("path", type=_PATH)
@click.option("-r", "--recursive", is_flag=True, help="PATH is a directory.")
@click.option("--name", "-n", help="The name of the record.  [default: file name, or DIR.zip]")
@creates
@takes(*_CONNECTION, "codec", "push_cache", in_pipeline=True)
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
        done = run_to_end(_push(context, path, name=name, rehash=False, create=create, selection=everything))
    except (TransferError, Unauthorized):
        context.note(f"The server is {_server_words(context)}.")
        raise
    context.show(_pushed_result(done), f"Pipeline File created with ID= {done.pushed.record.id}")
    # Standard output is exactly that line, for the scripts that read it.
    if is_pipeline():
        context.note(f"It is stored on {_server_words(context)}.")
    elif context.settings.url is None:
        unused = "; PIPELINE_API_URL is only for `pipeline create file`" if os.environ.get("PIPELINE_API_URL") else ""
        context.note(f"It is stored in {done.place}{unused}.")


def _server_words(context: CommandContext) -> str:
    """Return words that name the server of `pipeline create file`, and say where its URL is from."""
    if context.sdk_server is None:
        return for_display(redact_url(str(context.settings.url)))
    return f"{for_display(redact_url(context.sdk_server.url))} (from {context.sdk_server.source})"


@click.command(short_help="Fetch a stored file or directory.")
@click.argument("reference", metavar="ID|DIGEST|PATH|NAME[@REV][:ENTRY]")
@click.option(
    "-o", "--output", metavar="TARGET", help="A folder, or the path of the new file or directory.  [default: current folder]"
)
@click.option("--zip", "keeps_zip", is_flag=True, help="Write a directory as the zip file that it is stored as.")
@click.option("--unzip", is_flag=True, help="Write the content of a zip file that was stored as a file.")
@click.option("--force", is_flag=True, help="Replace an existing file, or a folder with everything in it.")
@takes(*_CONNECTION, "presigned_reads", "peers")
def fetch(context: CommandContext, reference: str, output: str | None, *, keeps_zip: bool, unzip: bool, force: bool) -> None:
    """Write a stored file or directory to TARGET, and verify every byte.

    For a file, TARGET works as in cp: in an existing folder, the file gets its own name; otherwise TARGET is the path
    of the new file. For a directory, TARGET is the path of the directory itself; only an empty folder may be there.
    Content of an older version and of an interrupted fetch is not transferred again.

    With `:` and a path, as in `my_model.zip:tokenizer/config.json`, only this file or folder of a stored directory is fetched.

    Without -o, and in a folder, the file gets its stored name. If you gave an id or a digest, you did not see that
    name: then an existing file is not replaced, and a name that begins with a dot is refused. --force allows both.
    """
    if keeps_zip and unzip:
        raise click.UsageError("--zip writes a zip file and --unzip writes its content; give one of them")
    if output == "":
        raise click.UsageError(f"--output: {EMPTY_PATH}")
    wanted = FetchRequest(reference, output, keeps_zip=keeps_zip, unzip=unzip, force=force)
    if wanted.entry_path and (keeps_zip or unzip):
        raise click.UsageError("an entry of a directory is written as it is; leave out --zip and --unzip")
    done = run_to_end(_fetch(context, wanted))
    record, fetched = done.record, done.fetched
    context.show(
        {
            "id": record.id,
            "digest": str(record.digest),
            "name": record.name,
            **({} if record.owner is None else {"owner": record.owner}),
            "path": str(fetched.path),
            "size": fetched.size,
            "file_count": 1 if done.file_count is None else done.file_count,
            "bytes_received": fetched.bytes_received,
            "bytes_reused": fetched.bytes_reused,
            **done.peers,
            "seconds": fetched.seconds,
            "repository": done.location,
            **({"entry_path": wanted.entry_path} if wanted.entry_path else {}),
        },
        *table(
            path=for_display(fetched.path),
            **({"directory": for_display(record.full_name)} if wanted.entry_path else {}),
            digest=record.digest,
            size=exactly(fetched.size),
            **_files(done.file_count or 0, is_tree=done.file_count is not None),
            received=exactly(fetched.bytes_received),
            **{name.removeprefix("bytes_"): exactly(size) for name, size in done.peers.items()},
            reused=exactly(fetched.bytes_reused),
            time=_time(fetched.seconds, fetched.size),
            repository=done.place,
        ),
    )


@click.command("hash", short_help="Print the digest of a file or directory.")
@click.argument("path", type=_PATH)
@_selects
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


class FetchRequest(NamedTuple):
    """The choices of a user for one fetch: the stored file, its form, and the path to write to."""

    reference: str
    output: str | None
    keeps_zip: bool
    unzip: bool
    force: bool

    @property
    def entry_path(self) -> str | None:
        """The path in a directory that follows the reference."""
        return Reference.parse(self.reference).entry_path

    def is_tree(self, record: Record) -> bool:
        """Return whether a tree is written, and not a file. For an entry of a directory, that depends on the entry."""
        return self.unzip or self.entry_path == "" or (record.kind is Kind.DIRECTORY and not self.keeps_zip)

    def is_chosen(self, name: str) -> bool:
        """Return whether the user chose to write to `name`: by a target, by --force, or by typing this name.

        A folder as the target of a file does not choose the name in it.
        """
        if self.entry_path:
            typed = {self.entry_path.rpartition("/")[2]}
        else:
            typed = {self.reference.rpartition("/")[2], Reference.parse(self.reference).name or ""}
        return self.force or name in typed or (self.output is not None and not self.names_folder)

    @property
    def names_folder(self) -> bool:
        """Whether the target is a folder, in which a file gets its stored name, as with cp."""
        return self.output is not None and (self.output.endswith(os.sep) or Path(self.output).is_dir())

    def check_name(self, name: str) -> None:
        """Raise TargetError if the user did not choose the name and it begins with a dot, such as `.bashrc` or `.ssh`.

        Programs look for files with such names, and another person may have chosen the name.
        """
        if name.startswith(".") and not self.is_chosen(name):
            reason = "you did not type this name, and it begins with a dot, like the names of settings and keys"
            raise TargetError(name, f"{reason}; give a target with its name with -o, or --force to write under this name")


class PushDone(NamedTuple):
    """The result of a push, and where it was stored."""

    pushed: PushResult
    commit: Commit | None
    """The commit that it is now. None if the repository has none."""
    place: str
    """Words that name the repository."""
    location: str
    created: bool
    """Whether the repository was made for it."""


class Done(NamedTuple):
    """The result of a fetch: what was written, and where it came from."""

    record: Record
    fetched: FetchResult | FetchTreeResult
    file_count: int | None
    """The number of files in a tree. None for a file."""
    place: str
    location: str
    peers: dict[str, int]
    """What the result says about peers."""


def target_path(wanted: FetchRequest, name: str) -> Path:
    """Return the path that a fetch of the file `name` writes to, by the rules of cp. Raises TargetError.

    A link is followed only if the user chose the name.
    """
    output, follows_link = wanted.output, wanted.is_chosen(name)
    path = Path(name if output is None else output)
    if output is not None and wanted.names_folder:
        if not path.is_dir():
            raise TargetError(output, "there is no such folder; make it first")
        path /= name
    if follows_link and path.is_symlink():
        # The link stays; the file that it points to is replaced.
        path = path.resolve()
    if path.is_dir():
        raise TargetError(str(path), "there is a folder at that path; give another target with -o")
    if not path.parent.is_dir():
        raise TargetError(str(path), f"there is no folder {path.parent}; make it first")
    return path


async def _push(
    context: CommandContext,
    path: Path,
    *,
    name: str | None,
    rehash: bool,
    create: bool,
    selection: Selection,
    message: str = "",
    branch: str = MAIN,
) -> PushDone:
    from filestore.system.own_process import tune_process  # heavy

    tune_process()
    from filestore.transfer.sources.push_cache import PushCache  # heavy
    from filestore_cli.hub_snapshots import push_path

    settings = context.settings
    created = create and await context.create_repository()
    with PushCache(settings.push_cache) as push_cache:
        async with (
            context.repository() as repository,
            show_progress(PUSH, _label(path), enabled=context.shows_progress, repository=repository) as report,
        ):
            pushed = await push_path(
                repository,
                path,
                note=context.note,
                name=name,
                message=message,
                author=printable(user_name()),
                branch=branch,
                push_cache=push_cache,
                rehash=rehash,
                codec=codec_of(settings.codec),
                report=report,
                **selection.arguments(),
            )
            commit = await _commit_of(repository, pushed.record, branch)
    return PushDone(pushed, commit, context.place(repository), repository.location, created)


async def _commit_of(repository: Repository, record: Record, branch: str) -> Commit | None:
    """Return the newest commit of a branch, if it stored this record."""
    try:
        commit = await repository.find_commit(record.full_name, None if branch == MAIN else f"refs/heads/{branch}")
    except (NotFound, ServerError):
        # An earlier version of the server has no commits.
        return None
    return commit if commit.file_id == record.id else None


async def _plan_push(context: CommandContext, path: Path, *, rehash: bool, selection: Selection) -> tuple[PushPlan, str, str]:
    from filestore.transfer.sources.push_cache import PushCache  # heavy
    from filestore_cli.hub_snapshots import plan_path

    with PushCache(context.settings.push_cache) as push_cache:
        async with (
            context.repository(read_only=True) as repository,
            show_progress(PLAN, _label(path), enabled=context.shows_progress, repository=repository) as report,
        ):
            plan = await plan_path(
                repository, path, note=context.note, push_cache=push_cache, rehash=rehash, report=report, **selection.arguments()
            )
    return plan, context.place(repository), repository.location


async def _fetch(context: CommandContext, wanted: FetchRequest) -> Done:
    from filestore.system.own_process import tune_process  # heavy

    tune_process()
    reference = Reference.parse(wanted.reference)
    async with context.repository(read_only=True) as repository:
        record = await record_of(repository, reference.without_entry)
        if not reference.means(record):
            what = "id" if reference.id is not None else "digest"
            context.note(f"Nothing is stored under the {what} {reference}; this is the file of that name.")
        place, location = context.place(repository), repository.location
        if reference.entry_path:
            fetched, file_count = await _fetch_entry(context, repository, record, wanted, reference)
            return Done(record, fetched, file_count, place, location, context.peers_result(repository))
        if wanted.is_tree(record):
            unpacked = await _fetch_tree(context, repository, record, wanted)
            return Done(record, unpacked, unpacked.file_count, place, location, context.peers_result(repository))
        return Done(
            record,
            await _fetch_file(context, repository, record, wanted),
            None,
            place,
            location,
            context.peers_result(repository),
        )


async def _fetch_file(context: CommandContext, repository: Repository, record: Record, wanted: FetchRequest) -> FetchResult:
    from filestore.transfer.fetch import fetch as fetch_file  # heavy

    wanted.check_name(record.name)
    target = target_path(wanted, record.name)
    async with show_progress(FETCH, record.name, enabled=context.shows_progress, repository=repository) as report:
        return await fetch_file(repository, record, target=target, report=report, force=wanted.is_chosen(record.name))


async def _fetch_entry(
    context: CommandContext, repository: Repository, record: Record, wanted: FetchRequest, reference: Reference
) -> tuple[FetchResult | FetchTreeResult, int | None]:
    """Fetch one file or folder of a directory. Return the result, and how many files a folder has."""
    from filestore.transfer.fetch import fetch_entry  # heavy
    from filestore.transfer.fetch_entry import find_entry  # heavy
    from filestore.transfer.fetch_tree import fetch_entry_tree  # heavy
    from filestore.transfer.stored_tree import EntryKind  # heavy

    found = await find_entry(repository, record, reference, limits=context.settings.zip_limits)
    name = found.entry.path.rpartition("/")[2]
    async with show_progress(FETCH, name, enabled=context.shows_progress, repository=repository) as report:
        if found.entry.kind is not EntryKind.FOLDER:
            target = target_path(wanted, name)
            force = wanted.is_chosen(name)
            return await fetch_entry(repository, record, found, target=target, force=force, report=report), None
        folder = Path(name if wanted.output is None else wanted.output)
        unpacked = await fetch_entry_tree(repository, record, found, target=folder, force=wanted.force, report=report)
    _note_tree(context, unpacked, folder)
    return unpacked, unpacked.file_count


async def _fetch_tree(context: CommandContext, repository: Repository, record: Record, wanted: FetchRequest) -> FetchTreeResult:
    from filestore.transfer.fetch_tree import fetch_tree  # heavy

    name = tree_name(record.name)
    if wanted.output is None:
        wanted.check_name(name)
    target = Path(name if wanted.output is None else wanted.output)
    limits = context.settings.zip_limits
    async with show_progress(FETCH, record.name, enabled=context.shows_progress, repository=repository) as report:
        unpacked = await fetch_tree(repository, record, target=target, force=wanted.force, limits=limits, report=report)
    _note_tree(context, unpacked, target)
    return unpacked


def _note_tree(context: CommandContext, unpacked: FetchTreeResult, target: Path) -> None:
    if not unpacked.is_atomic:
        context.note(f"{for_display(target)} existed, so the new names were moved into it one by one, and not in one step.")
    if unpacked.left is not None:
        context.note(f"The old content could not be removed, and is now {for_display(unpacked.left)}; remove it yourself.")


async def _hash(context: CommandContext, path: Path, selection: Selection) -> Manifest:
    from filestore.transfer.push import manifest_of  # heavy

    async with show_progress(HASH, _label(path), enabled=context.shows_progress) as report:
        return await manifest_of(path, report=report, **selection.arguments())


def _label(path: Path) -> str:
    # The names `.` and `..` say nothing to the user.
    return path.resolve().name if path.is_dir() else path.name


def codec_of(choice: str) -> Codec | None:
    """Return the codec that the setting `codec` means. None means the best codec for each chunk."""
    from filestore.format.codec import Codec  # heavy

    return None if choice == "auto" else Codec[choice.upper().replace("+", "_")]


def _commit_digits(done: PushDone) -> dict[str, str]:
    """Return the line of the commit. One that is the only version of a name without an owner is not shown."""
    commit = done.commit
    if commit is None or (commit.parent is None and done.pushed.record.owner is None):
        return {}
    return {"commit": commit.id[:SHORT_ID]}


def _pushed_result(done: PushDone) -> dict[str, object]:
    pushed = done.pushed
    return {
        **pushed.record.as_json(),
        "commit": None if done.commit is None else done.commit.id,
        "file_count": pushed.file_count,
        "bytes_read": pushed.bytes_read,
        "bytes_sent": pushed.bytes_sent,
        "bytes_shared": pushed.bytes_shared,
        "seconds": pushed.seconds,
        "repository": done.location,
        "repository_created": done.created,
    }


def _plan_result(plan: PushPlan, location: str) -> dict[str, object]:
    return {
        "digest": str(plan.digest),
        "size": plan.size,
        "entries": [{"name": entry.name, "size": entry.size, "bytes_new": entry.bytes_new} for entry in plan.entries],
        "bytes_new": plan.bytes_new,
        "bytes_shared": plan.bytes_shared,
        "bytes_read": plan.bytes_read,
        "seconds": plan.seconds,
        "repository": location,
    }


def _plan_lines(plan: PushPlan, place: str) -> list[str]:
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
            time=_time(plan.seconds, plan.size),
            repository=place,
        ),
        "Nothing was sent or recorded.",
    ]


def _files(count: int, *, is_tree: bool) -> dict[str, object]:
    return {"files": f"{count:,}"} if is_tree else {}


def _time(seconds: float, size: int) -> str:
    rate = f" ({in_units(size / seconds)}/s)" if seconds > 0 else ""
    return duration(seconds) + rate
