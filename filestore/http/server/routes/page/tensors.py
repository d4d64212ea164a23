"""The page of a file's tensors, with their types, shapes and sizes, and what its header says besides."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import islice
from math import prod
from typing import NamedTuple

from aiohttp import web

from filestore.errors import InvalidArchive, InvalidReference, InvalidTensors, LimitExceeded
from filestore.format.tensors import Tensor, TensorTable
from filestore.http.server.context import RequestContext
from filestore.http.server.kept_work import KEPT_WORK
from filestore.http.server.routes.page.paging import Paging
from filestore.http.server.routes.page.rendering import render
from filestore.http.server.routes.page.subjects import WORK_SIZE, Subject, display, opened_content, subject_of_id
from filestore.http.server.routes.queries import required
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_cpu_thread
from filestore.transfer.stored_ranges import ReadLimit
from filestore.transfer.stored_tensors import read_table

PAGE_COUNT = 500
"""Tensors of one page."""
METADATA_SHOWN = 200
"""Entries of the metadata that a page shows."""
_VALUE_SHOWN = 1000
"""Characters of each."""
READ_LIMIT = 96 << 20
"""Bytes of chunks that are read of a header, at most: it has up to 64 MiB, and begins and ends inside a chunk."""
_DIMENSIONS_SHOWN = 8
_TIMES = "\N{MULTIPLICATION SIGN}"
_TENSOR_SIZE = 320
"""Bytes of memory of a tensor, apart from its name and its shape."""
_FILE_TYPES = {
    "0": "F32",
    "1": "F16",
    "2": "Q4_0",
    "3": "Q4_1",
    "7": "Q8_0",
    "8": "Q5_0",
    "9": "Q5_1",
    "10": "Q2_K",
    "11": "Q3_K_S",
    "12": "Q3_K_M",
    "13": "Q3_K_L",
    "14": "Q4_K_S",
    "15": "Q4_K_M",
    "16": "Q5_K_S",
    "17": "Q5_K_M",
    "18": "Q6_K",
}
"""What `general.file_type` of a GGUF file means. Source: GGUF specification, "general.file_type"."""
_UNREADABLE = (InvalidTensors, InvalidArchive, InvalidReference, LimitExceeded)
"""The errors of a file that has no tensors that can be shown."""


class DtypeTotal(NamedTuple):
    """All tensors of a type."""

    dtype: str
    tensors: int
    parameters: int
    size: int


class Listing(NamedTuple):
    """What the page of a file is made of."""

    table: TensorTable
    totals: Sequence[DtypeTotal]
    """The largest first."""
    size_in_memory: int


class TensorRow(NamedTuple):
    """A tensor as a page shows it."""

    name: str
    dtype: str
    shape: str
    size: int


async def show_tensors(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the tensors of a stored file, or of a file in a stored directory."""
    asked = context.request.query
    subject = await subject_of_id(repository, required(context.request, "id"), asked.get("path", ""))
    context.noted.note_record(subject.record)
    wanted = asked.get("q", "").strip()
    try:
        listing = await tensors_of(context, repository, subject)
    except _UNREADABLE as error:
        return await render(context, "tensors.html", status=422, subject=subject, problem=str(error), listing=None)
    rows = await in_cpu_thread(_matching, listing.table.tensors, wanted)
    paging = Paging.of(context.request, len(rows), limit=PAGE_COUNT)
    return await render(
        context,
        "tensors.html",
        subject=subject,
        problem="",
        listing=listing,
        wanted=wanted,
        matching_count=len(rows),
        rows=[tensor_row(tensor) for tensor in rows[paging.start : paging.stop]],
        paging=paging,
        parameters=sum(total.parameters for total in listing.totals),
        data_size=sum(total.size for total in listing.totals),
        facts=_facts(listing.table),
        metadata=[(display(key), _value(text)) for key, text in islice(listing.table.metadata.items(), METADATA_SHOWN)],
        metadata_count=len(listing.table.metadata),
    )


async def tensors_of(context: RequestContext, repository: LocalRepository, subject: Subject) -> Listing:
    """Return what the header of a file says. It is kept for the next part of its page.

    Raises InvalidTensors, InvalidReference, EntryNotFound, InvalidArchive, LimitExceeded, NotFound, DamagedChunk, StorageError,
    Busy.
    """
    return await context.request.app[KEPT_WORK].get(
        repository.namespace,
        # With its name, which errors tell: whoever sees the content under one name may not see the others.
        ("tensors", subject.record.digest, subject.name),
        partial(_read, context, repository, subject),
        measure=lambda listing: listing.size_in_memory,
        check_client=lambda: context.transport,
    )


async def _read(context: RequestContext, repository: LocalRepository, subject: Subject) -> Listing:
    limit = ReadLimit(READ_LIMIT, what="the part of the file that its header is in, in bytes,")
    async with context.reader_budget.take(WORK_SIZE), opened_content(context, repository, subject, limit) as content:
        return await in_cpu_thread(_listing, await read_table(display(subject.name), content))


def _listing(table: TensorTable) -> Listing:
    totals: dict[str, DtypeTotal] = {}
    for tensor in table.tensors:
        _, count, parameters, size = totals.get(tensor.dtype, DtypeTotal(tensor.dtype, 0, 0, 0))
        totals[tensor.dtype] = DtypeTotal(tensor.dtype, count + 1, parameters + prod(tensor.shape), size + tensor.size)
    largest = sorted(totals.values(), key=lambda total: total.size, reverse=True)
    size = sum(tensor_memory(tensor) for tensor in table.tensors)
    size += sum(sys.getsizeof(key) + sys.getsizeof(text) for key, text in table.metadata.items())
    return Listing(table, largest, size + 512 * len(largest))


def tensor_memory(tensor: Tensor) -> int:
    """Return about how many bytes of memory a tensor takes."""
    return sys.getsizeof(tensor.name) + 40 * len(tensor.shape) + _TENSOR_SIZE


def tensor_row(tensor: Tensor) -> TensorRow:
    """Return a tensor as a page shows it."""
    return TensorRow(display(tensor.name), display(tensor.dtype), shape_text(tensor.shape), tensor.size)


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as the command line has it: 4096 by 1024, or `scalar`."""
    more = f" {_TIMES} … ({len(shape)} dimensions)" if len(shape) > _DIMENSIONS_SHOWN else ""
    return f" {_TIMES} ".join(map(str, shape[:_DIMENSIONS_SHOWN])) + more or "scalar"


def _matching(tensors: Sequence[Tensor], wanted: str) -> Sequence[Tensor]:
    """Return the tensors whose names have a text in them, in any case, or whose type it is."""
    if not wanted:
        return tensors
    text = wanted.casefold()
    return [tensor for tensor in tensors if text in tensor.name.casefold() or text == tensor.dtype.casefold()]


def _facts(table: TensorTable) -> list[tuple[str, str]]:
    """Return what the header says about the model, in words."""
    known = table.metadata
    file_type = known.get("general.file_type")
    return [
        (title, display(value))
        for title, value in (
            ("Architecture", known.get("general.architecture", "")),
            ("Model", known.get("general.name", "")),
            ("Quantisation", "" if file_type is None else _FILE_TYPES.get(file_type, f"file type {file_type}")),
            (
                "Framework",
                {"pt": "PyTorch", "tf": "TensorFlow", "flax": "Flax"}.get(known.get("format", ""), known.get("format", "")),
            ),
        )
        if value
    ]


def _value(text: str) -> str:
    shown = "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text[:_VALUE_SHOWN]
    )
    return shown if len(text) <= _VALUE_SHOWN else f"{shown}… ({len(text):,} characters)"
