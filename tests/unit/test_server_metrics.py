from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from filestore.http.server.metric_families import BUCKETS, FAMILIES, Kind
from filestore.http.server.metrics import Samples, count_request
from filestore.http.server.metrics_text import render
from filestore.http.server.request_record import RequestRecord
from filestore.system.metrics import Event, SharedTimes, count_into
from filestore.system.numbers import Key

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def test_names_follow_the_conventions_of_prometheus() -> None:
    """Each name is there once. Only a counter ends in _total. Units are base units."""
    names = [family.shown_name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert all(name.startswith("filestore_") and name == name.lower() for name in names)
    assert [family.name for family in FAMILIES if (family.kind is Kind.COUNTER) != family.shown_name.endswith("_total")] == []
    assert not [name for name in names if any(unit in name.split("_") for unit in ("ms", "kb", "mb", "percent", "minutes"))]


def test_samples_become_text_that_a_parser_reads() -> None:
    """Values and labels are what they were, also with characters that have a meaning in the format."""
    samples: Samples = {"http_requests": {('/a"b\\c\nd', "GET", "2xx"): 5.0}, "disk_free_bytes": {(): 2.0**53}}
    text, kind = render(samples, "")
    assert kind.startswith("text/plain; version=0.0.4")
    read = {family.name: family for family in text_string_to_metric_families(text.decode())}
    (sample,) = read["filestore_http_requests"].samples
    assert ({"route": '/a"b\\c\nd', "method": "GET", "status": "2xx"}, 5.0) == (sample.labels, sample.value)
    assert 2.0**53 == read["filestore_disk_free_bytes"].samples[0].value
    assert {"filestore_http_requests", "filestore_disk_free_bytes", "filestore_build_info"} == set(read)


def test_a_histogram_adds_up() -> None:
    """Each bucket contains those below it."""
    numbers: dict[Key, float] = {("/a", str(number)): 1.0 for number in range(len(BUCKETS) + 1)}
    text, _ = render({"http_request_duration_seconds": {**numbers, ("/a", "sum"): 12.5}}, "")
    read = {family.name: family for family in text_string_to_metric_families(text.decode())}
    samples = read["filestore_http_request_duration_seconds"].samples
    assert [float(number + 1) for number in range(len(BUCKETS) + 1)] == [
        sample.value for sample in samples if sample.name.endswith("_bucket")
    ]
    assert [float(len(BUCKETS) + 1), 12.5] == [sample.value for sample in samples if not sample.name.endswith("_bucket")]


def test_a_client_can_ask_for_open_metrics() -> None:
    """By the header Accept."""
    text, kind = render({"files_stored": {(): 1.0}}, OPEN_METRICS)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith(b"# EOF\n")


@pytest.mark.parametrize("version", ["abc", "1=2", "", "1.0.0.x"])
def test_a_version_that_is_not_a_number_is_not_an_error(version: str) -> None:
    """The client then gets a format of the library's choice."""
    for kind in ("text/plain", "application/openmetrics-text"):
        text, _ = render({"files_stored": {(): 1.0}}, f"{kind}; version={version}")
        assert b"filestore_files_stored_total 1.0" in text


def test_a_request_is_counted_by_route_method_and_class() -> None:
    """An error counts by its slug, the time in one bucket, and an ended connection as cut."""
    shared = SharedTimes(1)
    shared.join(0)
    try:
        record = RequestRecord("id", "GET", "/files/{id}", "192.0.2.1", status=404, error="not-found", seconds=0.02)
        record.bytes_received, record.bytes_sent = 10, 20
        count_request(record)
        count_request(RequestRecord("id", "GET", "/files/{id}", "192.0.2.1", status=0, seconds=1000.0))
    finally:
        count_into(None)
    numbers = shared.own.numbers.all()
    assert {
        (Event.PROCESS_STARTS,): 1.0,
        (Event.REQUESTS, "/files/{id}", "GET", "4xx"): 1.0,
        (Event.REQUESTS, "/files/{id}", "GET", "cut"): 1.0,
        (Event.REQUEST_TIMES, "/files/{id}", "1"): 1.0,
        (Event.REQUEST_TIMES, "/files/{id}", str(len(BUCKETS))): 1.0,
        (Event.REQUEST_SECONDS, "/files/{id}"): 1000.02,
        (Event.BYTES_RECEIVED, "/files/{id}"): 10.0,
        (Event.BYTES_SENT, "/files/{id}"): 20.0,
        (Event.ERRORS, "not-found"): 1.0,
    } == numbers
