"""The page that compares two stored files or directories, side by side: by file, and by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from aiohttp import web

from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import (
    InvalidArchive,
    InvalidDigest,
    InvalidInput,
    InvalidReference,
    InvalidTensors,
    LimitExceeded,
    NotFound,
)
from filestore.http.server.context import RequestContext
from filestore.http.server.kept_work import KEPT_WORK
from filestore.http.server.routes.page.chosen import WORK_SIZE, Chosen, chosen, chosen_by_reference, display, opened_side
from filestore.http.server.routes.page.formats import query
from filestore.http.server.routes.page.rendering import render, see_other
from filestore.http.server.routes.page.tensors import Pages, TensorRow, paged, tensor_memory, tensor_row
from filestore.http.server.routes.queries import number_in
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_cpu_thread
from filestore.transfer.diff_files import FileComparison, FilePair
from filestore.transfer.diff_tensors import TENSOR_SUFFIXES, Status, TensorDifference, compare_tensors, has_tensors
from filestore.transfer.stored_ranges import ReadLimit

T = TypeVar("T")

READ_LIMIT = 256 << 20
"""Bytes of chunks that a comparison reads, at most, where the lists of chunks do not tell whether content is the same."""
VERSIONS_SHOWN = 100
"""Versions of a name that can be chosen from a list."""
INLINE_FILES = 4
"""Files of a directory whose tensors are on its page. The tensors of each other one have a page."""
INLINE_TENSORS = 200
"""Tensors of such a file that are on the page."""
_PAIR_SIZE = 500
"""Bytes of memory of a pair of files, apart from their paths."""
_REFUSALS = (InvalidInput, InvalidReference, InvalidDigest, NotFound, InvalidArchive, LimitExceeded)
"""The errors of two things that cannot be compared, and of a reference that names nothing."""

WORDS = {Status.SAME: "shared", Status.CHANGED: "changed", Status.ADDED: "new", Status.REMOVED: "removed"}
"""What a page calls what became of a file or a tensor, in the order of its counts."""
SHOWN = {"all": frozenset(WORDS), "different": frozenset(WORDS) - {Status.SAME}} | {
    word: frozenset({status}) for status, word in WORDS.items()
}
"""What a reader can choose to see."""


class Comparison(NamedTuple):
    """What is different between two things."""

    pairs: Sequence[FilePair]
    """All files, in the order of their paths; one for a file that is compared alone."""
    is_directory: bool
    tensors: Sequence[TensorDifference] | None
    """All tensors of a file that is compared alone. None for a directory, and for a file that is not compared by tensor."""
    problem: str
    """Why the tensors were not compared, if they should have been. Empty otherwise."""
    old_size: int
    new_size: int
    bytes_new: int
    """Bytes of the new one in chunks that the old one does not have."""
    size_in_memory: int


class Sized(Protocol):
    """A file or a tensor."""

    @property
    def size(self) -> int:
        """Bytes of its content."""


class Total(NamedTuple):
    """How many files or tensors have one status, and how many bytes they have in the newer of the two."""

    word: str
    number: int
    size: int


class Bar(NamedTuple):
    """A part of the picture of a comparison: where it begins, in thousandths of the width."""

    word: str
    start: float
    width: float


class PairRow(NamedTuple):
    """A file or a tensor as the page shows it."""

    word: str
    name: str
    old: TensorRow | None
    new: TensorRow | None


class FileRow(NamedTuple):
    """A file of a directory as the page shows it."""

    word: str
    path: str
    old_size: int | None
    new_size: int | None
    bytes_new: int
    url: str
    """Where its tensors are compared. Empty for a file without tensors."""


class Inline(NamedTuple):
    """The tensors of a file of a directory."""

    path: str
    url: str
    totals: Sequence[Total]
    rows: Sequence[PairRow]
    left_out: int
    problem: str


async def show_comparison(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the comparison of two stored things, and with the form that chooses them.

    A form gives a reference in `old_ref` or `new_ref`, which is followed to the page with the ids. Without both sides, only the
    form is shown.
    """
    asked = context.request.query
    try:
        sides = [
            await _side(repository, asked.get(which, ""), asked.get(f"{which}_path", ""), asked.get(f"{which}_ref", ""))
            for which in ("old", "new")
        ]
    except _REFUSALS as error:
        return await _form_only(context, repository, problem=str(error))
    old, new = sides
    show = asked.get("show", "all")
    if show not in SHOWN:
        raise InvalidInput(f"show is {show!r}; allowed are {', '.join(SHOWN)}")
    if old is None or new is None:
        return await _form_only(context, repository, found=new or old)
    if "old_ref" in asked or "new_ref" in asked:
        return see_other(url_of(old, new, show=asked.get("show")))
    context.noted.note_record(new.record)
    versions = await _versions(repository, new.record)
    try:
        comparison = await compared(context, repository, old, new)
    except _REFUSALS as error:
        is_large = isinstance(error, LimitExceeded)
        return await _render(context, status=422, old=old, new=new, versions=versions, problem=str(error), is_large=is_large)
    shown = await in_cpu_thread(_Shown, comparison, old, new, show, number_in(context.request, "page"))
    inline = [await _inline(context, repository, (old, new), row, show=show) for row in shown.tensor_files()[:INLINE_FILES]]
    return await _render(
        context, old=old, new=new, versions=versions, comparison=comparison, shown=shown, show=show, inline=inline
    )


async def compared(context: RequestContext, repository: LocalRepository, old: Chosen, new: Chosen) -> Comparison:
    """Compare two stored things. The result is kept for the next part of its page.

    Raises InvalidInput for a file and a directory; LimitExceeded where too much content must be read, or a tree has too many
    entries; EntryNotFound, InvalidReference, InvalidArchive, NotFound, DamagedChunk, StorageError, Busy.
    """
    return await context.request.app[KEPT_WORK].get(
        repository.namespace,
        ("compare", old.record.digest, old.name, new.record.digest, new.name),
        partial(_compare, context, repository, old, new),
        measure=lambda comparison: comparison.size_in_memory,
        check_client=lambda: context.transport,
    )


def url_of(old: Chosen, new: Chosen, **more: object) -> str:
    """Return the page that compares two things."""
    sides = {"old": old.record.id, "old_path": old.path, "new": new.record.id, "new_path": new.path}
    return "/ui/compare" + query({**sides, **more})


async def _compare(context: RequestContext, repository: LocalRepository, old: Chosen, new: Chosen) -> Comparison:
    limit = ReadLimit(READ_LIMIT, what="the content to read for this comparison, in bytes,")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(context.reader_budget.take(WORK_SIZE))
        before, after = [await stack.enter_async_context(opened_side(context, repository, side, limit)) for side in (old, new)]
        comparison = await FileComparison.begin(before, after)
        pairs = [pair async for pair in comparison.pairs()]
        tensors, problem = None, ""
        if before.tree is None:
            [pair] = pairs
            if pair.mine is not None and pair.its is not None and has_tensors(before, pair.mine, after, pair.its):
                try:
                    tensors = await compare_tensors(before, pair.mine, after, pair.its)
                except InvalidTensors as error:
                    problem = str(error)
        bytes_new = sum(pair.bytes_new for pair in pairs) if after.is_part else comparison.bytes_new
        summed = partial(_summed, is_directory=before.tree is not None, problem=problem, bytes_new=bytes_new)
        return await in_cpu_thread(summed, pairs, tensors)


def _summed(
    pairs: Sequence[FilePair], tensors: Sequence[TensorDifference] | None, *, is_directory: bool, problem: str, bytes_new: int
) -> Comparison:
    size = sum(_PAIR_SIZE + 4 * len(pair.path) for pair in pairs)
    for each in tensors or ():
        size += 100 + sum(tensor_memory(tensor) for tensor in (each.old, each.new) if tensor is not None)
    old_size = sum(pair.mine.size for pair in pairs if pair.mine is not None)
    new_size = sum(pair.its.size for pair in pairs if pair.its is not None)
    return Comparison(pairs, is_directory, tensors, problem, old_size, new_size, bytes_new, size)


class _Shown:
    """The part of a comparison that a page shows. It is made in a thread."""

    def __init__(self, comparison: Comparison, old: Chosen, new: Chosen, show: str, page: int | None) -> None:
        wanted = SHOWN[show]
        self.files: Sequence[FileRow] = ()
        self.rows: Sequence[PairRow] = ()
        self.totals: Sequence[Total] = ()
        link = partial(url_of, old, new)
        if comparison.tensors is not None:
            self.totals = _tensor_totals(comparison.tensors)
            tensors = [each for each in comparison.tensors if each.status in wanted]
            self.pages, part = _page(tensors, page, link, show)
            self.rows = [_tensor_pair(each) for each in part]
        else:
            self.totals = _totals((pair.status, _size(pair.mine), _size(pair.its)) for pair in comparison.pairs)
            pairs = [pair for pair in comparison.pairs if pair.status in wanted]
            self.pages, some = _page(pairs, page, link, show)
            if comparison.is_directory:
                self.files = [_file_row(pair, old, new) for pair in some]
        shared = comparison.new_size - min(comparison.bytes_new, comparison.new_size)
        self.bytes_shared = shared
        self.bytes_bar = _bar([("shared", shared), ("new", min(comparison.bytes_new, comparison.new_size))])
        self.bar = _bar([(total.word, total.size) for total in self.totals])
        self.filters = [(name, link(show="" if name == "all" else name), name == show) for name in SHOWN]

    def tensor_files(self) -> list[FileRow]:
        """Return the changed files of this page whose tensors can be compared."""
        return [row for row in self.files if row.url and row.word == WORDS[Status.CHANGED]]


async def _inline(
    context: RequestContext, repository: LocalRepository, sides: tuple[Chosen, Chosen], row: FileRow, *, show: str
) -> Inline:
    old, new = sides
    try:
        found = await compared(context, repository, old.at(row.path), new.at(row.path))
    except _REFUSALS as error:
        return Inline(row.path, row.url, (), (), 0, str(error))
    tensors = found.tensors or ()
    rows = [_tensor_pair(each) for each in tensors if show == "all" or each.status is not Status.SAME]
    return Inline(
        row.path, row.url, _tensor_totals(tensors), rows[:INLINE_TENSORS], max(len(rows) - INLINE_TENSORS, 0), found.problem
    )


async def _side(repository: LocalRepository, file_id: str, path: str, reference: str) -> Chosen | None:
    if reference.strip():
        return await chosen_by_reference(repository, reference)
    return await chosen(repository, file_id, path) if file_id else None


async def _versions(repository: LocalRepository, record: Record) -> Sequence[Record]:
    """Return the newest versions of a name, for a list to choose from."""
    return (await repository.versions(Reference.of_name(record.full_name), limit=VERSIONS_SHOWN)).records


async def _form_only(
    context: RequestContext, repository: LocalRepository, *, problem: str = "", found: Chosen | None = None
) -> web.StreamResponse:
    asked = context.request.query
    if found is None:
        for which in ("new", "old"):
            try:
                found = found or await _side(repository, asked.get(which, ""), asked.get(f"{which}_path", ""), "")
            except _REFUSALS:
                continue
    versions = await _versions(repository, found.record) if found is not None else ()
    return await _render(context, status=422 if problem else 200, old=None, new=found, versions=versions, problem=problem)


async def _render(context: RequestContext, *, status: int = 200, **values: object) -> web.StreamResponse:
    asked = context.request.query
    typed = {which: asked.get(f"{which}_ref", "") for which in ("old", "new")}
    defaults = {"problem": "", "comparison": None, "shown": None, "show": "all", "inline": (), "is_large": False}
    page: dict[str, Any] = {**defaults, **values}
    return await render(context, "compare.html", status=status, typed=typed, **page)


def _page(rows: Sequence[T], page: int | None, link: Callable[..., str], show: str) -> tuple[Pages, Sequence[T]]:
    return paged(rows, page, lambda number: link(show="" if show == "all" else show, page=number))


def _tensor_totals(tensors: Iterable[TensorDifference]) -> list[Total]:
    return _totals((each.status, _size(each.old), _size(each.new)) for each in tensors)


def _totals(found: Iterable[tuple[Status, int | None, int | None]]) -> list[Total]:
    numbers: Counter[Status] = Counter()
    sizes: Counter[Status] = Counter()
    for status, old_size, new_size in found:
        numbers[status] += 1
        sizes[status] += (old_size if new_size is None else new_size) or 0
    return [Total(word, numbers[status], sizes[status]) for status, word in WORDS.items()]


def _size(thing: Sized | None) -> int | None:
    return None if thing is None else thing.size


def _bar(parts: Sequence[tuple[str, int]]) -> list[Bar]:
    """Return the parts of a bar of 1000 units, without those that have no bytes."""
    whole = sum(size for _, size in parts)
    bars: list[Bar] = []
    start = 0.0
    for word, size in parts:
        if size:
            width = 1000 * size / whole
            bars.append(Bar(word, round(start, 2), round(width, 2)))
            start += width
    return bars


def _tensor_pair(each: TensorDifference) -> PairRow:
    old, new = (None if tensor is None else tensor_row(tensor) for tensor in (each.old, each.new))
    return PairRow(WORDS[each.status], display(each.name), old, new)


def _file_row(pair: FilePair, old: Chosen, new: Chosen) -> FileRow:
    mine, its = pair.mine, pair.its
    is_named = pair.path.lower().endswith(TENSOR_SUFFIXES) and pair.status in {Status.CHANGED, Status.SAME}
    url = url_of(old.at(pair.path), new.at(pair.path)) if is_named else ""
    return FileRow(WORDS[pair.status], pair.path, _size(mine), _size(its), pair.bytes_new, url)
