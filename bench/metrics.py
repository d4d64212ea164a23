"""Measure what a count costs and what an answer of /metrics costs, and the same for prometheus-client's own files.

Usage: python -m bench.metrics [--processes 1,4,16,64]

Times are those of the processor. "processes" are those that have counted: with files of prometheus-client, also the dead
ones. Each has 40 routes with 3 classes of status and a histogram.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Before the library is imported, which reads it then.
_FOLDER = tempfile.TemporaryDirectory()
os.environ["PROMETHEUS_MULTIPROC_DIR"] = _FOLDER.name

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector  # noqa: E402

from filestore.http.server.metric_families import BUCKETS  # noqa: E402
from filestore.http.server.metrics import count_request, samples_of  # noqa: E402
from filestore.http.server.metrics_text import render  # noqa: E402
from filestore.http.server.request_record import RequestRecord  # noqa: E402
from filestore.system.metrics import Event, SharedTimes, count  # noqa: E402

ROUTES = [f"/native/v1/route{number}/{{id}}" for number in range(40)]
TIMES = 50_000


def microseconds(function: Callable[[], object]) -> float:
    """The processor time of one call, the best of five rounds."""
    rounds = []
    for _ in range(5):
        started = time.process_time()
        for _ in range(TIMES):
            function()
        rounds.append((time.process_time() - started) / TIMES)
    return min(rounds) * 1e6


def milliseconds(function: Callable[[], object]) -> float:
    """The processor time of one call, the median of five."""
    rounds = []
    for _ in range(5):
        started = time.process_time()
        function()
        rounds.append(time.process_time() - started)
    return statistics.median(rounds) * 1e3


def record(route: str, status: int = 200) -> RequestRecord:
    """A request that has ended."""
    return RequestRecord("id", "GET", route, "192.0.2.1", status=status, seconds=0.01, bytes_received=5, bytes_sent=5)


def count_all() -> None:
    """Count a request of each route and class in our memory."""
    for route in ROUTES:
        for status in (200, 404, 503):
            count_request(record(route, status))


def made_all() -> tuple[Counter, Histogram]:
    """Count the same with the library."""
    registry = CollectorRegistry()
    requests = Counter("requests", "Requests.", ["route", "method", "status"], registry=registry)
    seconds = Histogram("seconds", "Their time.", ["route"], buckets=BUCKETS, registry=registry)
    for route in ROUTES:
        for status in ("2xx", "4xx", "5xx"):
            requests.labels(route, "GET", status).inc()
        seconds.labels(route).observe(0.01)
    return requests, seconds


def their_answer() -> bytes:
    """What the library answers for all files."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library says nothing
    return generate_latest(registry)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,4,16,64", help="how many have counted")
    numbers = [int(number) for number in parser.parse_args().processes.split(",")]
    shared = SharedTimes(max(numbers))
    shared.join(0)
    count_all()
    requests, seconds = made_all()
    kept, one = requests.labels(ROUTES[3], "GET", "2xx"), record(ROUTES[3])
    print("| us | ours | prometheus-client |")
    print("|---|---|---|")
    ours, theirs = microseconds(lambda: count(Event.REQUESTS, ROUTES[3], "GET", "2xx")), microseconds(_labelled(requests))
    print(f"| count with labels | {ours:.1f} | {theirs:.1f} |")
    print(f"| count without | {microseconds(lambda: count(Event.FILES_STORED)):.1f} | {microseconds(kept.inc):.1f} |")

    def duration() -> None:
        count(Event.REQUEST_TIMES, ROUTES[3], "1")
        count(Event.REQUEST_SECONDS, ROUTES[3], amount=0.01)

    print(f"| duration | {microseconds(duration):.1f} | {microseconds(lambda: seconds.labels(ROUTES[3]).observe(0.01)):.1f} |")
    print(f"| request | {microseconds(lambda: count_request(one)):.1f} | |")
    print()
    print("| processes | ours, ms | prometheus-client, ms | its files, MB |")
    print("|---|---|---|---|")
    made = 1
    for number in numbers:
        for place in range(number):
            shared.join(place)
            count_all()
        while made < number:
            made += 1
            pid = os.fork()
            if pid == 0:
                made_all()
                os._exit(0)
            os.waitpid(pid, 0)
        size = sum(file.stat().st_size for file in Path(_FOLDER.name).iterdir())
        ours = milliseconds(lambda number=number: render(samples_of(shared.each_process()[:number]), ""))  # type: ignore[misc]
        print(f"| {number} | {ours:.1f} | {milliseconds(their_answer):.1f} | {size / 1e6:.1f} |")


def _labelled(requests: Counter) -> Callable[[], object]:
    return lambda: requests.labels(ROUTES[3], "GET", "2xx").inc()


if __name__ == "__main__":
    main()
