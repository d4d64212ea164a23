"""What names and versions add to the disk: measured at once where that is quick, and otherwise if the reader asks for it.

Who asks waits, and the measurement ends when they leave. It is not a report (`reports`), whose work goes on: the rest of these
pages can be shown without it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from aiohttp import web

from filestore.errors import FilestoreError
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import problem
from filestore.http.server.measuring import MEASURING, NAMES_KEPT, MeasuredUsage
from filestore.http.server.routes.page.errors import page_of, sentence_of
from filestore.http.server.routes.page.rendering import PAGE_HEADERS, render
from filestore.http.server.slow import answer_slowly
from filestore.repository.index.protocol import NamespaceUsage
from filestore.repository.local import LocalRepository

T = TypeVar("T")

QUICK_RECORDS = 500
QUICK_CHUNKS = 20_000
QUICK_MANIFESTS_SIZE = 8 << 20
QUICK_SECONDS = 2.0
"""A namespace that is not larger is measured at once, unless that takes longer."""
KEPT_SECONDS = 600
"""For how long a result is shown that may not hold any more."""
PAGE_SIZE = 3 << 19
"""Bytes of the largest page that comes late: 50 commits with messages, authors and labels that all have to be escaped."""
_HEADERS = {**PAGE_HEADERS, "Content-Type": "text/html; charset=utf-8"}


class NameSize(NamedTuple):
    """What a name takes, in bytes of the frames that no other name needs."""

    size: int
    is_exact: bool
    """Whether it takes exactly so many, and not fewer."""


class NameSizes(NamedTuple):
    """What the names of a namespace take, as far as it was measured."""

    sizes: dict[str, int]
    """Bytes of the frames that no other name needs, by names."""
    largest_left_out: int | None
    """At most so many bytes has each name that is not in `sizes`. None if nothing is known about them."""
    measured_at: int
    """In microseconds since 1970."""

    def of(self, name: str) -> NameSize | None:
        """Return what is known of a name. Return None if that is nothing."""
        if name in self.sizes:
            return NameSize(self.sizes[name], is_exact=True)
        return None if self.largest_left_out is None else NameSize(self.largest_left_out, is_exact=False)


class Finding(NamedTuple):
    """Sizes, or why there are none."""

    sizes: Mapping[str, int] | NameSizes | None
    """By ids of versions, or of names. None if they were not measured."""
    problem: str = ""
    """A sentence, if they could not be measured."""


async def render_measured(
    context: RequestContext,
    repository: LocalRepository,
    template: str,
    measure: Callable[[], Awaitable[Mapping[str, int] | NameSizes]],
    **values: object,
) -> web.StreamResponse:
    """Answer with a page that has `sizes`, which `measure` returns, and `problem`: both are those of a `Finding`.

    Without `measure` in the query, a namespace that is not small is not measured.
    """
    if "measure" in context.request.query and context.request.method == "GET":
        return await render_slowly(context, _render(context, template, measure, values))
    return await _render(context, template, partial(measure_if_small, repository, measure), values)


async def _render(
    context: RequestContext,
    template: str,
    measure: Callable[[], Awaitable[Mapping[str, int] | NameSizes | None]],
    values: Mapping[str, Any],
) -> web.Response:
    finding = await find_sizes(context, measure())
    return await render(context, template, sizes=finding.sizes, problem=finding.problem, **values)


async def render_slowly(context: RequestContext, work: Coroutine[Any, Any, web.Response]) -> web.StreamResponse:
    """Answer with the page that `work` makes, which may take minutes. It ends when the reader leaves."""
    return await answer_slowly(context, _page_or_error(context, work), document_size=PAGE_SIZE, goes_on=False, headers=_HEADERS)


async def _page_or_error(context: RequestContext, work: Coroutine[Any, Any, web.Response]) -> web.Response:
    try:
        return await work
    except Exception as error:  # noqa: BLE001  # any error ends this request only
        # Here, because its head may say already that a page follows.
        return await page_of(context.request, problem(context.request, error))


def is_quick(kept: NamespaceUsage) -> bool:
    """Return whether a namespace that keeps this is measured in a moment."""
    return kept.record_count <= QUICK_RECORDS and kept.chunk_count <= QUICK_CHUNKS and kept.manifests_size <= QUICK_MANIFESTS_SIZE


async def measure_if_small(repository: LocalRepository, measure: Callable[[], Awaitable[T]]) -> T | None:
    """Return what `measure` returns. Return None if the namespace is not small, or if it takes long all the same."""
    if not is_quick(await repository.kept()):
        return None
    try:
        async with asyncio.timeout(QUICK_SECONDS):
            return await measure()
    except TimeoutError:
        return None


async def last_name_sizes(context: RequestContext, repository: LocalRepository) -> NameSizes | None:
    """Return what was measured last, if it may still hold."""
    last = context.request.app[MEASURING].last_usage(repository)
    if last is None or time.time_ns() // 1000 - last.measured_at > KEPT_SECONDS * 1_000_000:
        return None
    return None if is_quick(last.kept) and last.kept != await repository.kept() else name_sizes(last)


async def measure_name_sizes(context: RequestContext, repository: LocalRepository) -> NameSizes:
    """Measure what each name adds. Raises StorageError."""
    measuring = context.request.app[MEASURING]
    return name_sizes(await measuring.usage(repository, grace_seconds=context.grace_seconds, name_limit=NAMES_KEPT))


async def measure_versions(context: RequestContext, repository: LocalRepository, file_ids: Sequence[str]) -> dict[str, int]:
    """Measure what each version adds that nothing else needs, by ids. Raises DamagedRecord, StorageError."""
    ids = tuple(dict.fromkeys(file_ids))
    measuring = context.request.app[MEASURING]
    return await measuring.share(repository.namespace, ("each", repository.prefix, ids), lambda: repository.freed_by_each(ids))


async def find_sizes(context: RequestContext, measuring: Awaitable[Mapping[str, int] | NameSizes | None]) -> Finding:
    """Return what a measurement finds, or a sentence about why it found nothing. The rest of a page can be shown without it."""
    try:
        return Finding(await measuring)
    except FilestoreError as error:
        return Finding(None, f"What it adds to the disk could not be measured. {sentence_of(context, error)}")


def name_sizes(measured: MeasuredUsage) -> NameSizes:
    """Return what a measurement says about names."""
    names = measured.usage.names
    sizes = {usage.name: usage.own_size for usage in names}
    if len(names) == measured.usage.name_count:
        return NameSizes(sizes, None, measured.measured_at)
    # They are in the order of own and shared bytes together.
    return NameSizes(sizes, names[-1].own_size + names[-1].shared_size if names else None, measured.measured_at)
