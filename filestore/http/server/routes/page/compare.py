"""The page that compares two stored files or directories, side by side: by file, and by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from aiohttp import web

from filestore.core.records import FILE_ID_PATTERN, Record
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
from filestore.http.server.routes.page.comparison import BY, Comparison, compare
from filestore.http.server.routes.page.paging import Paging
from filestore.http.server.routes.page.rendering import render, see_other
from filestore.http.server.routes.page.subjects import Subject, display, subject_of_id, subject_of_reference
from filestore.http.server.routes.page.tensors import PAGE_COUNT, TensorRow, tensor_row
from filestore.http.server.routes.page.urls import page_url
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_cpu_thread
from filestore.transfer.diff_files import FilePair
from filestore.transfer.diff_tensors import Status, TensorDifference, is_tensor_name

VERSIONS_SHOWN = 100
"""Versions of a name that can be chosen from a list."""
PATH_LIMIT = 500
"""Characters of a path whose tensors have a link. A page has hundreds of links, and each has the path twice."""
_PATH_SHOWN = 300
"""Characters of a path that are shown."""
INLINE_FILES = 4
"""Files of a directory whose tensors are on its page. The tensors of each other one have a page."""
INLINE_TENSORS = 200
"""Tensors of such a file that are on the page."""
_REFUSALS = (InvalidInput, InvalidReference, InvalidDigest, NotFound, InvalidArchive, InvalidTensors, LimitExceeded)
"""The errors of two things that cannot be compared, and of a reference that names nothing."""

WORDS = {Status.SAME: "shared", Status.CHANGED: "changed", Status.ADDED: "new", Status.REMOVED: "removed"}
"""What a page calls what became of a file or a tensor, in the order of its counts."""
SHOWN = {"all": frozenset(WORDS), "different": frozenset(WORDS) - {Status.SAME}} | {
    word: frozenset({status}) for status, word in WORDS.items()
}
"""What a reader can choose to see."""


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
    shown: str
    """The path as a page shows it."""
    old_size: int | None
    new_size: int | None
    bytes_new: int
    url: str
    """Where its tensors are compared. Empty for a file without tensors, and for one with a path that is too long."""


class InlineTensors(NamedTuple):
    """The tensors of a file of a directory."""

    path: str
    """As a page shows it."""
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
    show, by = asked.get("show", "all"), asked.get("by", "file")
    if by not in BY:
        raise InvalidInput(f"by is {by!r}; allowed are {', '.join(BY)}")
    if show not in SHOWN:
        raise InvalidInput(f"show is {show!r}; allowed are {', '.join(SHOWN)}")
    if old is None or new is None:
        return await _form_only(context, repository, found=new or old)
    if "old_ref" in asked or "new_ref" in asked:
        return see_other(url_of(old, new, by="" if by == "file" else by))
    context.noted.note_record(new.record)
    versions = await _versions(repository, new.record)
    try:
        comparison = await compare(context, repository, old, new, by=by)
    except _REFUSALS as error:
        is_large = isinstance(error, LimitExceeded)
        return await _render(
            context, status=422, old=old, new=new, versions=versions, problem=str(error), is_large=is_large, by=by
        )
    link = partial(url_of, old, new, by="" if by == "file" else by)
    paging_of = partial(Paging.of, context.request, limit=PAGE_COUNT)
    shown = await in_cpu_thread(_View, comparison, (old, new), link, show, paging_of)
    inline = [await _inline(context, repository, (old, new), row, show=show) for row in shown.tensor_files()[:INLINE_FILES]]
    return await _render(
        context, old=old, new=new, versions=versions, comparison=comparison, shown=shown, show=show, by=by, inline=inline
    )


def url_of(old: Subject, new: Subject, **more: object) -> str:
    """Return the page that compares two things."""
    sides = {"old": old.record.id, "old_path": old.path, "new": new.record.id, "new_path": new.path}
    return page_url("/ui/compare", **sides, **more)


class _View:
    """The part of a comparison that a page shows. It is made in a thread."""

    def __init__(
        self,
        comparison: Comparison,
        sides: tuple[Subject, Subject],
        link: Callable[..., str],
        show: str,
        paging_of: Callable[[int], Paging],
    ) -> None:
        wanted = SHOWN[show]
        self.files: Sequence[FileRow] = ()
        self.rows: Sequence[PairRow] = ()
        self.totals: Sequence[Total] = ()
        if comparison.tensors is not None:
            self.totals = _tensor_totals(comparison.tensors)
            tensors = [each for each in _differing_first(comparison.tensors) if each.status in wanted]
            self.paging = paging_of(len(tensors))
            self.rows = [_tensor_pair(each) for each in tensors[self.paging.start : self.paging.stop]]
        else:
            self.totals = _totals((pair.status, _size(pair.mine), _size(pair.its)) for pair in comparison.pairs)
            pairs = [pair for pair in comparison.pairs if pair.status in wanted]
            self.paging = paging_of(len(pairs))
            if comparison.is_directory:
                self.files = [_file_row(pair, *sides) for pair in pairs[self.paging.start : self.paging.stop]]
        shared = comparison.new_size - min(comparison.bytes_new, comparison.new_size)
        self.bytes_shared = shared
        self.bytes_bar = _bar([("shared", shared), ("new", min(comparison.bytes_new, comparison.new_size))])
        self.bar = _bar([(total.word, total.size) for total in self.totals])
        self.filters = [(name, link(show="" if name == "all" else name), name == show) for name in SHOWN]

    def tensor_files(self) -> list[FileRow]:
        """Return the changed files of this page whose tensors can be compared."""
        return [row for row in self.files if row.url and row.word == WORDS[Status.CHANGED]]


async def _inline(
    context: RequestContext, repository: LocalRepository, sides: tuple[Subject, Subject], row: FileRow, *, show: str
) -> InlineTensors:
    old, new = sides
    try:
        found = await compare(context, repository, old.at(row.path), new.at(row.path))
    except _REFUSALS as error:
        return InlineTensors(row.shown, row.url, (), (), 0, str(error))
    tensors = _differing_first(found.tensors or ())
    rows = [_tensor_pair(each) for each in tensors if show == "all" or each.status is not Status.SAME]
    return InlineTensors(
        row.shown, row.url, _tensor_totals(tensors), rows[:INLINE_TENSORS], max(len(rows) - INLINE_TENSORS, 0), found.problem
    )


async def _side(repository: LocalRepository, wanted: str, path: str, reference: str) -> Subject | None:
    """Return one side: what a field of the form has, or else what an id or another reference names, with a path in it."""
    if reference.strip():
        return await subject_of_reference(repository, reference)
    if not wanted or FILE_ID_PATTERN.match(wanted):
        return await subject_of_id(repository, wanted, path) if wanted else None
    subject = await subject_of_reference(repository, wanted)
    return subject.at(path) if path else subject


async def _versions(repository: LocalRepository, record: Record) -> Sequence[Record]:
    """Return the newest versions of a name, for a list to choose from."""
    return (await repository.versions(Reference.of_name(record.full_name), limit=VERSIONS_SHOWN)).records


async def _form_only(
    context: RequestContext, repository: LocalRepository, *, problem: str = "", found: Subject | None = None
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


async def _render(context: RequestContext, *, status: int = 200, **values: Any) -> web.StreamResponse:
    asked = context.request.query
    typed = {which: asked.get(f"{which}_ref", "") for which in ("old", "new")}
    defaults: dict[str, Any] = {"problem": "", "is_large": False, "by": "file", "by_urls": ()}
    defaults |= {"comparison": None, "shown": None, "show": "all", "inline": ()}
    if isinstance(values.get("old"), Subject) and isinstance(values.get("new"), Subject):
        defaults["by_urls"] = [(each, url_of(values["old"], values["new"], by="" if each == "file" else each)) for each in BY]
    page = {**defaults, **values}
    return await render(context, "compare.html", status=status, typed=typed, **page)


def _differing_first(tensors: Iterable[TensorDifference]) -> list[TensorDifference]:
    return sorted(tensors, key=lambda each: each.status is Status.SAME)


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


def _file_row(pair: FilePair, old: Subject, new: Subject) -> FileRow:
    mine, its = pair.mine, pair.its
    is_named = is_tensor_name(pair.path) and len(pair.path) <= PATH_LIMIT
    is_named = is_named and pair.status in {Status.CHANGED, Status.SAME}
    url = url_of(old.at(pair.path), new.at(pair.path)) if is_named else ""
    return FileRow(WORDS[pair.status], pair.path, _cut(pair.path), _size(mine), _size(its), pair.bytes_new, url)


def _cut(path: str) -> str:
    return path if len(path) <= _PATH_SHOWN else f"{path[:_PATH_SHOWN]}…"
