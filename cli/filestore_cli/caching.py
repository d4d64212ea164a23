"""The commands cache warm, ls, rm, prune and verify. They fill, list, clean and check a cache."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from filestore.core.names import split_full_name, tree_name
from filestore.core.records import Kind
from filestore.core.references import Reference
from filestore.core.timestamps import format_seconds
from filestore.errors import InvalidInput, InvalidReference, StorageError
from filestore_cli.context import CommandContext, takes
from filestore_cli.filters import Filter
from filestore_cli.lookup import record_of
from filestore_cli.parameters import NonemptyPath
from filestore_cli.progress import FETCH, show_progress
from filestore_cli.serving import NOT_SERVED, check_listening, log_options, tls_files
from filestore_cli.start import RESUMES, run_to_end
from filestore_cli.text import age, duration, exactly, for_display, in_units, table

if TYPE_CHECKING:
    # Heavy: the commands import these when they run.
    from filestore.cache import ResolveResult
    from filestore.cache.inventory import CachedEntry, StagedEntry
    from filestore.cache.leases import Leases
    from filestore.core.records import Record

_PREFIX_DIGITS = 8
"""The number of first digits of a digest that are enough to name an entry."""
_SHOWN_DIGITS = 16


@click.group(short_help="Fill, list, check and clear the cache.")
def cache() -> None:
    """Fill the cache of this machine, list its entries, remove entries, and check them."""


@cache.command("warm", short_help="Fetch into the cache ahead of time.")
@click.argument("references", metavar="ID|DIGEST|PATH|NAME[@REV][:ENTRY]", nargs=-1, required=True)
@click.option("--zip", "keeps_zip", is_flag=True, help="Store directories as zip files, which `File(...)` resolves to.")
@click.option("--unzip", is_flag=True, help="Store the content of zip files, which `Directory(...)` resolves to.")
@takes(
    *("url", "token", "connections", "stall_seconds", "retry_seconds", "limit_rate", "presigned_reads", "peers"),
    *("cache", "cache_size_limit", "cache_min_free"),
)
def warm(context: CommandContext, references: tuple[str, ...], *, keeps_zip: bool, unzip: bool) -> None:
    """Fetch stored files and directories into the cache ahead of time, so that a later start finds them there.

    With `:` and a path, as in `my_model.zip:tokenizer/config.json`, only this file or folder of a stored directory is fetched.
    """
    if keeps_zip and unzip:
        raise click.UsageError("--zip stores zip files and --unzip stores their content; give one of them")
    wanted = [Reference.parse(text) for text in references]
    if (keeps_zip or unzip) and any(reference.entry_path is not None for reference in wanted):
        raise click.UsageError("an entry of a directory is stored as it is; leave out --zip and --unzip")
    click.get_current_context().meta[RESUMES] = True
    run_to_end(_warm(context, wanted, keeps_zip=keeps_zip, unzip=unzip))


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option --filter, and pass it as a list of Filters."""

    def parse(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[Filter]:
        try:
            return [Filter.parse(value) for value in values]
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    about = "Only entries that match, such as 'size>1GB' or 'accessed>7d'; repeatable, all must match."
    return click.option("--filter", "filters", metavar="FILTER", multiple=True, callback=parse, help=about)(command)


_dry_run = click.option("--dry-run", is_flag=True, help="Remove nothing; show what would be removed.")


@cache.command("ls", short_help="List what is in the cache.")
@_filters
@takes("cache")
def cache_ls(context: CommandContext, filters: list[Filter]) -> None:
    """List the entries of the cache, the most recently used first, and what interrupted fetches left."""
    from filestore.cache.inventory import staged  # heavy

    stock = _Stock.of(context.settings.cache)
    kept = sorted(stock.matching(filters), key=lambda entry: entry.used_at, reverse=True)
    size = sum(entry.stored_size for entry in kept)
    left = list(staged(stock.root))
    abandoned = sum(item.stored_size for item in left if item.key not in stock.held)
    context.show(
        {
            "cache": str(stock.root),
            "entries": [stock.as_json(entry) for entry in kept],
            "stored_size": size,
            "staged": [stock.staged_as_json(item) for item in left],
        },
        *(stock.line(entry) for entry in kept),
        f"{_count(kept)}, {in_units(size)} in {for_display(stock.root)}",
    )
    if abandoned:
        context.note(f"Interrupted fetches left another {in_units(abandoned)}; `filestore cache prune` removes it.")


@cache.command("rm", short_help="Remove cached files and directories.")
@click.argument("wanted", metavar="DIGEST|ID|NAME|PATH", nargs=-1, required=True)
@_dry_run
@takes("cache")
def cache_rm(context: CommandContext, wanted: tuple[str, ...], *, dry_run: bool) -> None:
    """Remove cached files and directories. An entry in use stays."""
    stock = _Stock.of(context.settings.cache)
    found: dict[Path, CachedEntry | StagedEntry] = {}
    for text in wanted:
        matching = stock.named(text)
        if not matching:
            raise InvalidReference(
                text, "nothing in the cache has that digest, id, name or path; `filestore cache ls` shows what it has"
            )
        found |= {entry.folder: entry for entry in matching}
    in_use = _remove(context, stock, list(found.values()), dry_run=dry_run)
    if in_use:
        what = ", ".join(for_display(" ".join(entry.names)) for entry in in_use)
        raise click.ClickException(f"{what} is in use and was not removed; end the process that uses it, and try again")


@cache.command("prune", short_help="Remove leftovers and free space.")
@_filters
@_dry_run
@takes("cache", "cache_size_limit", "cache_min_free", "peer_size_limit")
def cache_prune(context: CommandContext, filters: list[Filter], *, dry_run: bool) -> None:
    """Remove what interrupted fetches left, and evict the least recently used entries until the limits hold.

    The frames that `filestore cache serve` keeps for peers have a limit of their own.

    With --filter, remove all entries that match instead. Entries in use stay.
    """
    from filestore.cache.inventory import unfinished  # heavy
    from filestore.cache.quota import Quota  # heavy
    from filestore.peers.frame_folder import FOLDER, sweep  # heavy
    from filestore.system.files import remove_if_possible  # heavy

    settings = context.settings
    stock = _Stock.of(settings.cache)
    if filters:
        found: list[CachedEntry | StagedEntry] = [entry for entry in stock.matching(filters) if entry.key not in stock.held]
    else:
        quota = Quota(stock.root, stock.leases, size_limit=settings.cache_size_limit, min_free=settings.cache_min_free)
        found = quota.surplus()
        if not dry_run:
            for path in unfinished(stock.root):
                remove_if_possible(path)
            freed = sweep(stock.root / FOLDER, size_limit=settings.peer_size_limit, min_free=settings.cache_min_free)
            if freed:
                context.note(f"Frames for peers were removed too: {in_units(freed)}.")
    _remove(context, stock, found, dry_run=dry_run)


@cache.command("verify", short_help="Check the cache; remove what is damaged.")
@click.argument("folder", required=False, type=NonemptyPath())
@takes("cache")
def cache_verify(context: CommandContext, folder: Path | None) -> None:
    """Read and check every file and directory of the cache FOLDER, and remove damaged entries.

    They are fetched again when they are needed. If there were any, the exit status is 1.
    """
    from filestore.cache import verify_cache  # heavy

    root = folder or context.settings.cache
    removed = run_to_end(verify_cache(root))
    context.show(
        {"cache": str(root), "removed": [str(path) for path in removed]},
        *(f"removed {for_display(path)}" for path in removed),
        f"{for_display(root)}: {len(removed)} damaged",
    )
    if removed:
        were, are = ("entry was", "it is") if len(removed) == 1 else ("entries were", "they are")
        raise click.ClickException(f"{len(removed)} damaged {were} removed from the cache; {are} fetched again when needed")


@cache.command("serve", short_help="Give what other machines fetch.")
@takes(
    *("listen", "url", "token", "connections", "stall_seconds", "retry_seconds", "limit_rate", "presigned_reads"),
    *("cache", "peer_size_limit", "cache_min_free", "tls_cert", "tls_key", "tls_client_ca", "connections_limit"),
    *("address_connections_limit", "head_seconds", "drain_seconds", "metrics_listen", "access_log", "access_log_file"),
)
def cache_serve(context: CommandContext) -> None:
    """Give other machines what they fetch from the same server, as one of its peers, until Ctrl-C or SIGTERM.

    Each piece is fetched from the server once, kept on disk, and given to all machines that may read it. They are told of their
    peers by --peers.
    """
    from filestore.system.own_process import tune_process  # heavy

    tune_process()
    from filestore.cache.cache import check_format  # heavy
    from filestore.http.client.repository import RemoteRepository  # heavy
    from filestore.peers.server import serve  # heavy

    settings = context.settings
    host, port = settings.listen
    check_listening(settings, on=host)
    if context.is_local:
        raise click.ClickException("a peer gives what a server has; name the server by --url or FILESTORE_URL")

    @asynccontextmanager
    async def origin() -> AsyncIterator[RemoteRepository]:
        async with context.repository(read_only=True, asks_peers=False) as repository:
            assert isinstance(repository, RemoteRepository)  # noqa: S101  # it is not local
            yield repository

    root = settings.cache.absolute()
    # Before the folder of frames is made in it: what is not empty cannot become a cache any more.
    check_format(root)
    serve(
        origin,
        host=host,
        port=port,
        cache=root,
        announce=lambda url: context.show({"url": url, "cache": str(root)}, f"listening on {url}", otherwise=NOT_SERVED),
        size_limit=settings.peer_size_limit,
        min_free=settings.cache_min_free,
        limits=settings.server_limits,
        tls=tls_files(settings),
        metrics=settings.metrics_listen,
        logs=log_options(settings, audit_log=None),
    )


async def _warm(context: CommandContext, references: list[Reference], *, keeps_zip: bool, unzip: bool) -> None:
    from filestore.cache import Cache  # heavy
    from filestore.core.references import Directory, File
    from filestore.system.own_process import keep_heap  # heavy
    from filestore.transfer.fetch_entry import find_entry  # heavy

    keep_heap()
    settings = context.settings
    root = settings.cache.absolute()
    done: list[_Warmed] = []
    async with context.repository(read_only=True) as repository:
        # All references are looked up first, so that a mistake in the last one is not reported after hours.
        records = [(await record_of(repository, each.without_entry), each.entry_path) for each in references]
        async with Cache(
            root,
            repository,
            limits=settings.zip_limits,
            size_limit=settings.cache_size_limit,
            min_free=settings.cache_min_free,
        ) as warmed:
            for record, path in records:
                if path and await warmed.cached(f"{record.id}:{path}") is None:
                    await find_entry(repository, record, Reference(id=record.id, entry_path=path), limits=settings.zip_limits)
            for record, path in records:
                is_tree = unzip or (record.kind is Kind.DIRECTORY and not keeps_zip)
                whole = Directory(id=record.id) if is_tree else File(id=record.id)
                wanted = whole if path is None else f"{record.id}:{path}"
                name = path or record.name
                async with show_progress(FETCH, name, enabled=context.shows_progress, repository=repository) as report:
                    resolved = await warmed.resolved(wanted, report=report)
                cached = await warmed.cached(wanted) if path else None
                done.append(_Warmed(record, path or None, record.size if cached is None else cached.size, resolved))
        received = sum(each.resolved.bytes_received for each in done)
        reused = sum(each.resolved.bytes_reused for each in done)
        seconds = sum(each.resolved.seconds for each in done)
        peers = context.peers_result(repository)
        context.show(
            {
                "files": [each.as_json() for each in done],
                "bytes_received": received,
                "bytes_reused": reused,
                **peers,
                "seconds": seconds,
                "cache": str(root),
                "repository": repository.location,
            },
            *(each.line() for each in done),
            *table(
                received=exactly(received),
                **{name.removeprefix("bytes_"): exactly(size) for name, size in peers.items()},
                reused=exactly(reused),
                time=duration(seconds),
                cache=for_display(root),
                repository=context.place(repository),
            ),
        )


class _Warmed(NamedTuple):
    """What a warm has put in the cache, or found there."""

    record: Record
    entry_path: str | None
    """The path in the directory. None for a whole file or directory."""
    size: int
    resolved: ResolveResult

    def as_json(self) -> dict[str, object]:
        """Return it as a JSON object."""
        record, resolved = self.record, self.resolved
        kind = record.kind
        if self.entry_path is not None:
            kind = Kind.DIRECTORY if resolved.path.is_dir() else Kind.FILE
        return {
            "id": record.id,
            "digest": str(record.digest),
            "name": record.name,
            "kind": kind.value,
            "path": str(resolved.path),
            "size": self.size,
            "bytes_received": resolved.bytes_received,
            "bytes_reused": resolved.bytes_reused,
            "seconds": resolved.seconds,
            "was_cached": resolved.was_cached,
            **({} if self.entry_path is None else {"entry_path": self.entry_path}),
        }

    def line(self) -> str:
        """Return it as a line for a person."""
        return f"{'was there' if self.resolved.was_cached else 'fetched':<10}  {for_display(self.resolved.path)}"


class _Stock(NamedTuple):
    """The content of a cache at the time when it was read."""

    root: Path
    leases: Leases
    entries: list[CachedEntry]
    held: frozenset[str]
    """Keys of the entries in use."""
    now: float

    @classmethod
    def of(cls, root: Path) -> _Stock:
        """Read the cache in `root`. Raises ClickException, UnknownFormat, StorageError."""
        from filestore.cache.cache import check_cache  # heavy
        from filestore.cache.inventory import entries  # heavy
        from filestore.cache.leases import Leases  # heavy

        root = root.absolute()
        try:
            check_cache(root)
        except InvalidInput as error:
            raise click.ClickException(for_display(f"{error}; `filestore cache warm` makes one")) from error
        leases = Leases(root)
        return cls(root, leases, list(entries(root)), frozenset(leases.held()), time.time())

    def matching(self, filters: Sequence[Filter]) -> list[CachedEntry]:
        """Return the entries that match all filters."""
        return [
            entry
            for entry in self.entries
            if all(each.takes(stored_size=entry.stored_size, age=self.now - entry.used_at) for each in filters)
        ]

    def named(self, text: str) -> list[CachedEntry]:
        """Return the entries with this digest, id, name or path. The first 8 digits of a digest are enough.

        A name may be the stored one: entries have it without the owner, and that of a directory without `.zip`.
        """
        from filestore.cache.entry_store import recall  # heavy

        digests = {str(record.digest) for record in recall(self.root, text)}
        path = Path(text).absolute()
        name = split_full_name(text)[1]
        names = {text, name, tree_name(name)}
        return [
            entry
            for entry in self.entries
            if entry.digest in digests
            or (len(text) >= _PREFIX_DIGITS and entry.digest.startswith(text))
            or not names.isdisjoint(entry.names)
            or entry.folder == path
            or entry.folder in path.parents
        ]

    def as_json(self, entry: CachedEntry) -> dict[str, object]:
        """Return an entry as a JSON object."""
        repository, namespace, _ = entry.key.split(".", 2)
        return {
            "digest": entry.digest,
            "kind": entry.kind.value,
            "names": entry.names,
            "size": entry.size,
            "stored_size": entry.stored_size,
            "accessed_at": format_seconds(entry.used_at),
            "in_use": entry.key in self.held,
            "repository_id": repository,
            "namespace": namespace,
            "paths": [str(entry.folder / "content" / name) for name in entry.names],
        }

    def staged_as_json(self, item: StagedEntry) -> dict[str, object]:
        """Return data in staging as a JSON object. A fetch is writing it, or left it."""
        return {
            "path": str(item.folder),
            "stored_size": item.stored_size,
            "written_at": format_seconds(item.used_at),
            "in_use": item.key in self.held,
        }

    def line(self, entry: CachedEntry) -> str:
        """Return an entry as a line for a person."""
        kind = "  (directory)" if entry.kind is Kind.DIRECTORY else ""
        in_use = "  (in use)" if entry.key in self.held else ""
        names = for_display(", ".join(entry.names) or "nothing sound")
        used = age(self.now - entry.used_at)
        return f"{entry.digest[:_SHOWN_DIGITS]}  {in_units(entry.stored_size):>8}  {used:>7}  {names}{kind}{in_use}"


def _remove(
    context: CommandContext, stock: _Stock, found: list[CachedEntry | StagedEntry], *, dry_run: bool
) -> list[CachedEntry]:
    """Remove the entries that are not in use, and print them. Return the entries in use, which stay.

    Raises StorageError after all others are removed.
    """
    from filestore.cache.inventory import CachedEntry, discard  # heavy

    removed: list[CachedEntry | StagedEntry] = []
    stuck: dict[Path, StorageError] = {}
    for item in found:
        try:
            if item.key not in stock.held if dry_run else discard(stock.leases, item):
                removed.append(item)
        except StorageError as error:
            stuck[item.folder] = error
    gone = {item.folder for item in removed} | stuck.keys()
    in_use = [item for item in found if isinstance(item, CachedEntry) and item.folder not in gone]
    kept = [item for item in removed if isinstance(item, CachedEntry)]
    left = [item for item in removed if not isinstance(item, CachedEntry)]
    size = sum(item.stored_size for item in removed)
    verb = "would remove" if dry_run else "removed"
    left_lines = [f"{verb} {in_units(sum(item.stored_size for item in left))} that interrupted fetches left"] if left else []
    context.show(
        {
            "cache": str(stock.root),
            "dry_run": dry_run,
            "removed": [stock.as_json(entry) for entry in kept],
            "left_by_cut_fetches": sum(item.stored_size for item in left),
            "stored_size": size,
        },
        *(f"{verb} {stock.line(entry)}" for entry in kept),
        *left_lines,
        f"{verb} {_count(kept)}, {in_units(size)} in {for_display(stock.root)}",
    )
    if stuck:
        # All others are removed by now.
        raise next(iter(stuck.values()))
    return in_use


def _count(entries: Sequence[CachedEntry]) -> str:
    return "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
