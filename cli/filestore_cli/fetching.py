"""The command fetch."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from filestore.core.names import tree_name
from filestore.core.records import Kind
from filestore.core.references import Reference
from filestore.errors import TargetError
from filestore.system.files import EMPTY_PATH
from filestore_cli.context import TRANSFER_SETTINGS, CommandContext, Result, takes
from filestore_cli.lookup import record_of
from filestore_cli.parameters import NonemptyPath
from filestore_cli.progress import FETCH, Items, show_items
from filestore_cli.several import Failures, refuse_equal, show_blocks
from filestore_cli.start import RESUMES, output_failure, run_to_end, say
from filestore_cli.text import Rows, exactly, file_rows, for_display, table, time_taken

if TYPE_CHECKING:
    # Heavy: the command imports these when it runs.
    from filestore.core.progress import Report
    from filestore.core.records import Record
    from filestore.repository.protocol import Repository
    from filestore.transfer.fetch import FetchResult
    from filestore.transfer.fetch_entry import FoundEntry
    from filestore.transfer.fetch_tree import FetchTreeResult
    from filestore.transfer.local_seeds import SeedFinder

_OUTPUT = "-"
"""The target that means standard output."""
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]")
"""What no plain text has: control characters other than tabs and line ends, in ASCII and as UTF-8."""


@click.command(short_help="Fetch stored files and directories.")
@click.argument("references", metavar="ID|DIGEST|PATH|NAME[@REV][:ENTRY]...", nargs=-1, required=True)
@click.option(
    "-o", "--output", metavar="TARGET", help="A folder, or the path of the new file or directory.  [default: current folder]"
)
@click.option("--zip", "keeps_zip", is_flag=True, help="Write a directory as the zip file that it is stored as.")
@click.option("--unzip", is_flag=True, help="Write the content of a zip file that was stored as a file.")
@click.option(
    "--seed",
    "seeds",
    metavar="PATH",
    type=NonemptyPath(),
    multiple=True,
    help="A file or folder of this machine that may have parts of the content, such as an older version; repeatable.",
)
@click.option("--force", is_flag=True, help="Replace an existing file, or a folder with everything in it.")
@takes(*TRANSFER_SETTINGS, "presigned_reads", "peers", "cache")
def fetch(
    context: CommandContext,
    references: tuple[str, ...],
    output: str | None,
    *,
    keeps_zip: bool,
    unzip: bool,
    seeds: tuple[Path, ...],
    force: bool,
) -> None:
    """Write stored files and directories to TARGET, and verify every byte.

    For a file, TARGET works as in cp: in an existing folder, the file gets its own name; otherwise TARGET is the path
    of the new file. For a directory, TARGET is the path of the directory itself; only an empty folder, or the same
    directory, may be there. Missing folders above TARGET are made. Content of an older version, also one beside TARGET,
    and of an interrupted fetch is not transferred again.

    With several names, TARGET is a folder, which is made if it is not there: each file and each directory gets its own
    name in it. If one of them fails, the others are fetched all the same.

    With `:` and a path, as in `my_model.zip:tokenizer/config.json`, only this file or folder of a stored directory is fetched.

    With `-o -`, one file is written to standard output, each part of it as soon as it is verified.

    Without -o, and in a folder, the file gets its stored name. If you gave an id or a digest, you did not see that
    name: then an existing file is not replaced, and a name that begins with a dot is refused. --force allows both.
    """
    if keeps_zip and unzip:
        raise click.UsageError("--zip writes a zip file and --unzip writes its content; give one of them")
    if output == _OUTPUT:
        _check_output(references, unzip=unzip, seeds=seeds)
    if output == "":
        raise click.UsageError(f"--output: {EMPTY_PATH}")
    is_several = len(references) > 1
    requests = [
        FetchRequest(reference, output, keeps_zip=keeps_zip, unzip=unzip, force=force, is_several=is_several)
        for reference in references
    ]
    for wanted in requests:
        if wanted.entry_path and (keeps_zip or unzip):
            raise click.UsageError("an entry of a directory is written as it is; leave out --zip and --unzip")
    if output == _OUTPUT:
        # What was written is not there the next time.
        click.get_current_context().meta[RESUMES] = False
        result = run_to_end(_fetch_to_output(context, requests[0]))
        if context.json:
            say(json.dumps(result))
        return
    if not is_several:
        [done], place, location = run_to_end(_fetch(context, requests, seeds, None))
        context.show(_result(done) | {"repository": location}, *table(**_rows(done), repository=place))
        return
    failures = Failures()
    fetched, place, location = run_to_end(_fetch(context, requests, seeds, failures))
    results = {
        "fetched": [_result(done) for done in fetched],
        "failed": failures.as_json("reference"),
        "repository": location,
    }
    blocks = [table(**_rows(done)) for done in fetched]
    show_blocks(context, results, blocks, place=place, failures=failures)


def _check_output(references: Sequence[str], *, unzip: bool, seeds: Sequence[Path]) -> None:
    """Raise UsageError if this cannot be written to standard output."""
    if len(references) > 1:
        raise click.UsageError("-o - writes one file to standard output; fetch several one by one (-o ./- is a folder called -)")
    if seeds:
        raise click.UsageError("--seed is for a file or directory that is written to a disk; leave it out with -o -")
    if unzip:
        raise click.UsageError(
            "standard output takes one file; leave out --unzip, or fetch one file of it by its path after a ':'"
        )


async def _fetch_to_output(context: CommandContext, wanted: FetchRequest) -> Result:
    """Write a file to standard output, and return the result, which has no place there."""
    from filestore.system.own_process import tune_process  # heavy

    tune_process()
    from filestore.transfer.fetch_stream import fetch_stream  # heavy

    is_terminal = sys.stdout.isatty()
    async with context.repository(read_only=True) as repository:
        found = await _find(context, repository, wanted)
        is_zip = wanted.keeps_zip and found.entry is None
        if found.is_tree and not is_zip:
            advice = "give --zip to write it as a zip file" if found.entry is None else "give the path of a file in it"
            raise click.ClickException(
                f"{for_display(wanted.reference)} is a directory, and standard output takes one file; {advice}"
            )
        enabled = context.shows_progress and not is_terminal
        async with show_items(FETCH, [found.size], enabled=enabled, repository=repository) as items:
            with items.item(found.name) as report:
                try:
                    fetched = await fetch_stream(
                        repository,
                        found.record,
                        sys.stdout.fileno(),
                        found=found.entry,
                        check=_TextCheck() if is_terminal and not wanted.force else None,
                        report=report,
                    )
                except BrokenPipeError:
                    raise
                except OSError as error:
                    raise click.ClickException(
                        f"the content cannot be written to standard output: {output_failure(error)}"
                    ) from None
        return {
            **_about(found),
            "path": _OUTPUT,
            "size": fetched.size,
            "file_count": 1,
            "bytes_received": fetched.bytes_received,
            "bytes_reused": 0,
            "reused_from": [],
            "was_there": False,
            **context.peers_result(repository),
            "seconds": fetched.seconds,
            "repository": repository.location,
        }


class _TextCheck:
    """Refuses content that could control a terminal. It is called with the pieces of the content, in order."""

    def __init__(self) -> None:
        self._last = b""

    def __call__(self, piece: memoryview) -> None:
        """Raise ClickException for a piece that is not plain text."""
        # A character may begin in the piece before.
        if _CONTROLS.search(piece) or _CONTROLS.search(self._last + bytes(piece[:1])):
            raise click.ClickException(
                "the content is not plain text, and standard output is a terminal; write it to a file or program, or give --force"
            )
        self._last = bytes(piece[-1:])


class FetchRequest(NamedTuple):
    """The choices of a user for one fetch: the stored file, its form, and the path to write to."""

    reference: str
    output: str | None
    keeps_zip: bool
    unzip: bool
    force: bool
    is_several: bool = False
    """Whether the command fetches other files too. The target is then the folder of all of them."""

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
        return self.output is not None and (self.is_several or self.output.endswith(os.sep) or Path(self.output).is_dir())

    def check_name(self, name: str) -> None:
        """Raise TargetError if the user did not choose the name and it begins with a dot, such as `.bashrc` or `.ssh`.

        Programs look for files with such names, and another person may have chosen the name.
        """
        if name.startswith(".") and not self.is_chosen(name):
            reason = "you did not type this name, and it begins with a dot, like the names of settings and keys"
            raise TargetError(name, f"{reason}; give a target with its name with -o, or --force to write under this name")

    def file_path(self, name: str) -> Path:
        """Return the path that a fetch of the file `name` writes to, by the rules of cp. Raises TargetError.

        A link is followed only if the user chose the name.
        """
        output, follows_link = self.output, self.is_chosen(name)
        path = Path(name if output is None else output)
        if output is not None and self.names_folder:
            path /= name
        if follows_link and path.is_symlink():
            # The link stays; the file that it points to is replaced.
            path = path.resolve()
        if path.is_dir():
            raise TargetError(str(path), "there is a folder at that path; give another target with -o")
        return path

    def tree_path(self, name: str) -> Path:
        """Return the path of the directory that a fetch of a tree makes."""
        if self.output is None:
            return Path(name)
        return Path(self.output) / name if self.is_several else Path(self.output)


class _Found(NamedTuple):
    """What the repository has for a request."""

    wanted: FetchRequest
    record: Record
    entry: FoundEntry | None
    """The file or folder of a directory, if that is wanted."""

    @property
    def is_tree(self) -> bool:
        from filestore.transfer.stored_tree import EntryKind  # heavy

        return self.wanted.is_tree(self.record) if self.entry is None else self.entry.entry.kind is EntryKind.FOLDER

    @property
    def name(self) -> str:
        """The name of what is written."""
        if self.entry is not None:
            return self.entry.entry.path.rpartition("/")[2]
        return tree_name(self.record.name) if self.is_tree else self.record.name

    @property
    def size(self) -> int | None:
        """Bytes of content. None for a folder of a directory."""
        if self.entry is None:
            return self.record.size
        return None if self.is_tree else self.entry.entry.size

    def target(self) -> Path:
        """Return the path of the new file or directory. Raises TargetError."""
        wanted, name = self.wanted, self.name
        if self.entry is None and (not self.is_tree or wanted.output is None or wanted.is_several):
            wanted.check_name(name)
        return wanted.tree_path(name) if self.is_tree else wanted.file_path(name)


class _Done(NamedTuple):
    """The result of a fetch: what was written."""

    found: _Found
    fetched: FetchResult | FetchTreeResult
    file_count: int | None
    """The number of files in a tree. None for a file."""
    peers: dict[str, int]
    """What the result says about peers."""


async def _fetch(
    context: CommandContext, requests: Sequence[FetchRequest], seeds: Sequence[Path], failures: Failures | None
) -> tuple[list[_Done], str, str]:
    """Do the fetches, and return their results, words that name the repository, and its location.

    What goes wrong with one of several is noted in `failures`. Without that, it is raised.
    """
    from filestore.system.own_process import tune_process  # heavy

    tune_process()
    from filestore.cache.cached_seeds import CachedSeeds  # heavy
    from filestore.transfer.local_seeds import finders_of

    noted = Failures.raised() if failures is None else failures
    done: list[_Done] = []
    limits = context.settings.zip_limits
    async with context.repository(read_only=True) as repository, CachedSeeds(context.settings.cache, limits=limits) as cached:
        # Made once, so that each is hashed once. What the cache has need not be hashed before it is copied.
        finders = [cached, *finders_of(seeds)]
        found: list[_Found] = []
        for wanted in noted.each(requests, lambda wanted: wanted.reference):
            with noted.of(wanted.reference):
                found.append(await _find(context, repository, wanted))
        if found and found[0].wanted.is_several:
            _make_folder(found[0].wanted.output)
        placed: list[tuple[_Found, Path]] = []
        for each in found:
            with noted.of(each.wanted.reference):
                placed.append((each, each.target()))
        refuse_equal(
            ((str(target.parent.resolve() / target.name), each.wanted.reference) for each, target in placed),
            "{given} would both be written to {made}; fetch them one by one, each with its own -o",
        )
        sizes = [each.size for each, _ in placed]
        async with show_items(FETCH, sizes, enabled=context.shows_progress, repository=repository) as items:
            noted.tell = items.tell
            for each, target in noted.each(placed, lambda place: place[0].wanted.reference):
                with noted.of(each.wanted.reference):
                    done.append(await _fetch_one(context, repository, each, target, items, finders=finders))
        for result in done:
            _note_tree(context, result)
        return done, context.place(repository), repository.location


async def _find(context: CommandContext, repository: Repository, wanted: FetchRequest) -> _Found:
    reference = Reference.parse(wanted.reference)
    record = await record_of(repository, reference.without_entry)
    if not reference.means(record):
        what = "id" if reference.id is not None else "digest"
        context.note(f"Nothing is stored under the {what} {reference}; this is the file of that name.")
    if not reference.entry_path:
        return _Found(wanted, record, None)
    from filestore.transfer.fetch_entry import find_entry  # heavy

    return _Found(wanted, record, await find_entry(repository, record, reference, limits=context.settings.zip_limits))


def _make_folder(output: str | None) -> None:
    """Make the folder of several files, with its parents. Raises TargetError."""
    if output is None:
        return
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise TargetError(output, "a file is there, and several files are fetched into a folder; give another target") from None
    except OSError as error:
        raise TargetError(output, f"this folder cannot be made: {error.strerror}") from None


async def _fetch_one(
    context: CommandContext,
    repository: Repository,
    found: _Found,
    target: Path,
    items: Items,
    *,
    finders: Sequence[SeedFinder],
) -> _Done:
    peers_before = context.peers_result(repository)
    with items.item(found.name if found.entry is not None else found.record.name) as report:
        fetched = await _written(context, repository, found, target, report, finders=finders)
    peers = {name: size - peers_before.get(name, 0) for name, size in context.peers_result(repository).items()}
    return _Done(found, fetched, getattr(fetched, "file_count", None), peers)


async def _written(
    context: CommandContext,
    repository: Repository,
    found: _Found,
    target: Path,
    report: Report | None,
    *,
    finders: Sequence[SeedFinder],
) -> FetchResult | FetchTreeResult:
    from filestore.transfer.fetch import fetch as fetch_file  # heavy
    from filestore.transfer.fetch import fetch_entry
    from filestore.transfer.fetch_tree import fetch_entry_tree, fetch_tree
    from filestore.transfer.siblings import SiblingFinder

    wanted, record = found.wanted, found.record
    # Last: they are only read if nothing else has the whole content.
    finders = [*finders, SiblingFinder(is_tree=found.is_tree)]
    if found.is_tree:
        if found.entry is not None:
            return await fetch_entry_tree(
                repository, record, found.entry, target=target, force=wanted.force, finders=finders, report=report
            )
        limits = context.settings.zip_limits
        return await fetch_tree(
            repository, record, target=target, force=wanted.force, seeds=finders, limits=limits, report=report
        )
    force = wanted.is_chosen(found.name)
    if found.entry is not None:
        return await fetch_entry(repository, record, found.entry, target=target, force=force, finders=finders, report=report)
    return await fetch_file(repository, record, target=target, seeds=finders, report=report, force=force)


def _note_tree(context: CommandContext, done: _Done) -> None:
    unpacked = done.fetched
    if not getattr(unpacked, "is_atomic", True):
        context.note(
            f"{for_display(unpacked.path)} existed, so the new names were moved into it one by one, and not in one step."
        )
    left = getattr(unpacked, "left", None)
    if left is not None:
        context.note(f"The old content could not be removed, and is now {for_display(left)}; remove it yourself.")


def _about(found: _Found) -> dict[str, object]:
    """Return what a result says about the stored file."""
    record, entry_path = found.record, found.wanted.entry_path
    return {
        "id": record.id,
        "digest": str(record.digest),
        "name": record.name,
        **({} if record.owner is None else {"owner": record.owner}),
        **({"entry_path": entry_path} if entry_path else {}),
    }


def _result(done: _Done) -> dict[str, object]:
    fetched = done.fetched
    return {
        **_about(done.found),
        "path": str(fetched.path),
        "size": fetched.size,
        "file_count": 1 if done.file_count is None else done.file_count,
        "bytes_received": fetched.bytes_received,
        "bytes_reused": fetched.bytes_reused,
        "reused_from": [{"path": str(path), "size": size} for path, size in fetched.reused_from.items()],
        "was_there": fetched.was_there,
        **done.peers,
        "seconds": fetched.seconds,
    }


def _rows(done: _Done) -> Rows:
    record, fetched = done.found.record, done.fetched
    return {
        "path": for_display(fetched.path),
        **({"directory": for_display(record.full_name)} if done.found.wanted.entry_path else {}),
        "digest": record.digest,
        "size": exactly(fetched.size),
        **file_rows(done.file_count or 0, is_tree=done.file_count is not None),
        "received": exactly(fetched.bytes_received),
        **{name.removeprefix("bytes_"): exactly(size) for name, size in done.peers.items()},
        "reused": exactly(fetched.bytes_reused),
        **({"from": ", ".join(map(for_display, fetched.reused_from))} if fetched.reused_from else {}),
        **({"already_there": "verified; nothing was replaced"} if fetched.was_there else {}),
        "time": time_taken(fetched.seconds, fetched.bytes_received),
    }
