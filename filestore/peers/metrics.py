"""What a peer shows of itself at `/metrics`, in the names and the forms of a server. docs/peers.md lists it."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from functools import partial

from aiohttp import web

from filestore.http.server.metric_families import COUNTED, DURATION, OTHERS, PROCESSES, Family, Kind
from filestore.http.server.metrics import note_memory_and_files, samples_of
from filestore.http.server.traffic import Traffic
from filestore.system.metrics import Event, Gauge, SharedTimes, note
from filestore.system.threads import in_cpu_thread

LOOKUPS = "peer"
"""What looks into the folder of frames count as among the looks into caches."""
_SHARED_NAMES = frozenset(
    {
        *("http_requests", "http_received_bytes", "http_sent_bytes", "errors", "http_connections_refused", "wrong_credentials"),
        *("cache_lookups", "log_lines_left_out", "http_connections", "http_requests_in_progress"),
    }
)
_SUMS = (
    *(family for family in COUNTED if family.name in _SHARED_NAMES),
    Family("peer_frames_given", Kind.COUNTER, "Frames that readers were given.", (), Event.FRAMES_GIVEN),
    Family("peer_frames_given_bytes", Kind.COUNTER, "Bytes of the frames that readers were given.", (), Event.FRAMES_GIVEN_SIZE),
    Family("peer_frames_fetched", Kind.COUNTER, "Frames that were fetched from the server.", (), Event.FRAMES_FETCHED),
    Family(
        "peer_frames_fetched_bytes",
        Kind.COUNTER,
        "Bytes of the frames that were fetched from the server.",
        (),
        Event.FRAMES_FETCHED_SIZE,
    ),
)
FAMILIES: Sequence[Family] = (
    DURATION,
    *_SUMS,
    *PROCESSES,
    *(family for family in OTHERS if family.name == "build_info"),
)
"""All metrics of a peer."""


class PeerMetrics:
    """The metrics of this process. It counts from now on."""

    def __init__(self, traffic: Traffic) -> None:
        self._shared_times = SharedTimes(1)
        self._shared_times.join(0)
        self._traffic = traffic
        note(Gauge.STARTED_AT, value=time.time())

    def app(self, *, connections: Callable[[], int]) -> web.Application:
        """Return the application that shows them. It answers nothing else, and asks for nothing: they are only numbers.

        `connections` returns how many readers are connected.
        """
        app = web.Application()
        app.router.add_get("/metrics", partial(self._show, connections))
        return app

    async def _show(self, connections: Callable[[], int], request: web.Request) -> web.StreamResponse:
        self._shared_times.own.note_usage()
        note(Gauge.REQUESTS, value=self._traffic.requests)
        # The site of the metrics has noted its own ones.
        note(Gauge.CONNECTIONS, value=connections())
        await note_memory_and_files()
        text = await in_cpu_thread(importlib.import_module, "filestore.http.server.metrics_text")  # it takes 0.15 s
        samples = samples_of(self._shared_times.each_process(), counted=_SUMS)
        rendered, kind = await in_cpu_thread(lambda: text.render(samples, request.headers.get("Accept", ""), families=FAMILIES))
        return web.Response(body=rendered, headers={"Content-Type": kind, "Cache-Control": "no-store"})
