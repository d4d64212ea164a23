"""The picture of a stored file's chunks: which are new, which are shared with which other file, and what is left of each."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

from filestore.core.records import Record, checked_file_id
from filestore.core.references import Reference
from filestore.errors import NotFound
from filestore.http.server.context import RequestContext
from filestore.http.server.measuring import MEASURING
from filestore.http.server.routes.page.paging import Paging
from filestore.http.server.routes.page.rendering import render
from filestore.http.server.routes.page.reports import REFRESH, REPORTS, state_of
from filestore.http.server.routes.queries import required
from filestore.repository.local import LocalRepository

if TYPE_CHECKING:  # they import numpy, which is heavy
    from filestore.http.server.routes.page.chunk_cells import Cell, Encoding, Sharing
    from filestore.http.server.routes.page.chunk_report import ChunkReport

ROWS_AT_ONCE = 50
"""The runs of chunks on one page."""
_SOURCES_LIMIT = 20

_SHARING = (
    ("only-here", "new with this version"),
    ("since", "new with this version, and in later ones"),
    ("version", "from an earlier version"),
    ("other", "from another file"),
)
"""For each `Sharing`, the class of its boxes, and what it is called."""
_ENCODINGS = (
    ("raw", "not compressed"),
    ("zstd", "zstd"),
    ("planes2", "planes of 2 bytes, zstd"),
    ("planes4", "planes of 4 bytes, zstd"),
    ("encoded", "compressed, codec not read"),
    ("unknown", "not looked at"),
    ("missing", "missing"),
)
"""The same for each `Encoding`."""


class _Part(NamedTuple):
    """The chunks of a run, or of a kind, that come from one place."""

    style: str
    words: str
    record: Record | None
    """The file that has them too. None if there is none."""
    chunk_count: int
    size: int


class _Row(NamedTuple):
    """A run of chunks in the table."""

    first: int
    """The number of its first chunk, from 1."""
    last: int
    offset: int
    size: int
    stored_size: int
    parts: list[_Part]
    more_parts: int
    """How many further places its chunks come from."""
    encoding: str


class _Sum(NamedTuple):
    """All chunks with one kind of sharing."""

    style: str
    words: str
    chunk_count: int
    size: int
    stored_size: int


async def show_chunks(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Show where the chunks of a file come from. If it takes long to find out, say so, and let the browser ask again."""
    file_id = context.noted.facts["record"] = checked_file_id(required(context.request, "id"))
    record = await repository.record(Reference(id=file_id))
    report = await _report(context, repository, record)
    if report is None:
        return await render(context, "chunks.html", headers=REFRESH, record=record, report=None)
    paging = Paging.of(context.request, len(report.rows), limit=ROWS_AT_ONCE)
    return await render(context, "chunks.html", record=record, report=report, paging=paging, **_values(report, paging))


async def _report(context: RequestContext, repository: LocalRepository, record: Record) -> ChunkReport | None:
    from filestore.http.server.routes.page.chunk_report import ReportInputs, make_chunk_report  # noqa: PLC0415  # heavy: numpy

    app, namespace = context.request.app, repository.namespace
    make = partial(make_chunk_report, repository, record, ReportInputs.of(context))
    question = ("chunks", record.id, repository.prefix, await state_of(repository))
    try:
        return await app[REPORTS].get(namespace, question, app[MEASURING].run(namespace, make))
    except NotFound:
        # Its content was removed meanwhile. The record says so, if it is gone too.
        await repository.record(Reference(id=record.id))
        raise


def _values(report: ChunkReport, paging: Paging) -> dict[str, Any]:
    """Return what the template shows besides the report itself."""
    sources = [_part(report, *origin) for origin in report.origins if _record_of(report, origin.rank) is not None]
    used = [_SHARING[kind] for kind in sorted(report.picture.boxes)]
    return {
        "sums": [_Sum(*_SHARING[kind], *each) for kind, each in report.sums.items()],
        "rows": [_row(report, row) for row in report.rows[paging.start : paging.stop]],
        "sources": sources[:_SOURCES_LIMIT],
        "source_count": len(sources),
        "legend": used,
        "codec_legend": [_ENCODINGS[kind] for kind in sorted(report.picture.codecs)],
        "encodings": [(*_ENCODINGS[kind], count) for kind, count in report.encodings.items()],
        "boxes": _paths(report.picture.boxes, _SHARING),
        "filled": _paths(report.picture.filled, _SHARING),
        "codecs": _paths(report.picture.codecs, _ENCODINGS),
        "stored_size": sum(each.stored_size for each in report.sums.values()),
        "region_columns": [
            (kind, words) for kind, (_, words) in enumerate(_SHARING) if any(each.shares[kind] for each in report.regions)
        ],
        "is_estimate": report.looked_count < report.chunk_count,
    }


def _paths(paths: dict[Sharing, str] | dict[Encoding, str], words: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    return [(words[kind][0], path) for kind, path in paths.items()]


def _row(report: ChunkReport, row: Cell) -> _Row:
    known = [(_ENCODINGS[kind][1], count) for kind, count in enumerate(row.encodings) if count]
    words = [text if len(known) == 1 else f"{count:,} {text}" for text, count in known]
    return _Row(
        row.first + 1,
        row.stop,
        row.offset,
        row.size,
        row.stored_size,
        [_part(report, *part) for part in row.parts],
        row.part_count - len(row.parts),
        "; ".join(words),
    )


def _part(report: ChunkReport, rank: int, count: int, size: int) -> _Part:
    return _Part(*_SHARING[report.sharing[rank]], _record_of(report, rank), count, size)


def _record_of(report: ChunkReport, rank: int) -> Record | None:
    return report.candidates.records[rank] if rank >= 0 else None
